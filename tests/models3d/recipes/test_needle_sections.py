from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from models3d.recipes import needle_sections
from models3d.recipes.needle import Settings, examples, new_network
from models3d.recipes.needle_path import TUBE, WIDE, Path, tube_frame, tube_lengths
from models3d.recipes.needle_sections import (
    FACTS,
    SECTIONS,
    Shafts,
    drawn_along,
    facts,
    fitted,
    moved,
    section_loss,
    sections,
    varied,
)
from models3d.recipes.needle_tubes import opened

SMALL = Settings(side=16, coarse=(2, 4), fine=(2, 4, 4), code=6, tubes=2)
AXIS = Path(np.array([20.0, 22.0, 24.0]), np.array([0.0, 0.6, 0.8]), np.array([1e-3, 0, 0]), -30.0, 34.0)


def sample(needle: bool = True) -> dict[str, torch.Tensor]:
    """A prepared volume with a bar two voxels thick, of 0.4 mm each."""
    grey, labels = torch.full((40, 44, 48), 60), torch.zeros(40, 44, 48)
    if needle:
        labels[19:21, 20:22, 10:40] = 1
        grey[19:21, 20:22, 10:40] = 240
    step = torch.tensor([0.4, 0.4, 0.4], dtype=torch.float64)
    return {"grey": grey.to(torch.uint8), "labels": labels.to(torch.uint8), "step": step}


class Bright(nn.Module):
    """A second look that sees a shaft where a slice is bright, in the middle of what is."""

    def forward(self, tubes: Tensor) -> tuple[Tensor, Tensor]:
        bright = (tubes[:, 0] > 0.8).float()
        across = torch.arange(WIDE) - (WIDE - 1) / 2
        count = bright.sum((2, 3))
        offset = [(bright.sum(axis) * across).sum(2) / count.clamp_min(1) for axis in (3, 2)]
        return torch.stack([18 * (count > 0) - 9.0, *offset, 0 * count], 1), torch.zeros(len(tubes), 3)


def read(curve: np.ndarray) -> torch.Tensor:
    """Sections that see an axis at ``curve`` (3, 2), all as sure."""
    x = (2 * np.arange(SECTIONS) + 1) / SECTIONS - 1
    offset = np.stack([np.ones(SECTIONS), x, x**2], 1) @ curve
    return torch.tensor(np.concatenate([offset.T, np.full((1, SECTIONS), 500.0)]))[None]


def test_sections_are_means_of_the_slices_with_a_shaft():
    tube = torch.ones(1, 2, TUBE, 4, 4)
    tube[:, 0] = torch.arange(TUBE)[None, :, None, None] < 16
    tube[:, 1, :, 0] = 0
    shaft = torch.zeros(1, TUBE)
    shaft[:, 8:24] = 0.5
    level, weight = sections(tube, shaft)[0]
    assert level.shape == (SECTIONS, 4, 4)
    assert weight[:, 1, 0].tolist() == [4.0, 4.0] + [0.0] * (SECTIONS - 2)
    assert level[:, 1, 0].tolist() == [4.0] + [0.0] * (SECTIONS - 1)
    assert float(weight[:, 0].max()) == 0, "outside the view nothing counts"


def test_a_fit_finds_a_parabola_and_sections_of_no_weight_do_not_move_it():
    curve = np.array([[0.7, -1.2], [0.9, 0.4], [-0.3, 0.2]])
    answers = read(curve)
    torch.testing.assert_close(fitted(answers, torch.ones(1))[0].double().numpy(), curve, atol=0.02, rtol=0)
    answers[0, :2, 0], answers[0, 2, 0] = 9.0, 0.0
    torch.testing.assert_close(fitted(answers, torch.ones(1))[0].double().numpy(), curve, atol=0.03, rtol=0)
    answers[0, 2] = 0.0
    assert float(fitted(answers, torch.ones(1)).abs().max()) < 1e-5, "nothing seen: the tube's own axis"


def test_a_moved_path_runs_where_the_fit_is():
    lengths, frame = tube_lengths(AXIS), tube_frame(AXIS)
    curve = np.array([[0.7, -1.2], [0.9, 0.4], [-0.3, 0.2]])
    x = (2 * np.arange(TUBE) + 1) / TUBE - 1
    wanted = AXIS.points(lengths) + np.stack([np.ones(TUBE), x, x**2], 1) @ curve @ frame
    path = moved(AXIS, curve, lengths=lengths, frame=frame)
    assert path.locate(wanted)[1].max() < 0.02
    assert np.linalg.norm(path.ahead) == pytest.approx(1) and path.bend @ path.ahead == pytest.approx(0)


def test_facts_say_whether_millimetres_are_known():
    known, unknown = (facts(AXIS, step=1.5, largest=1.2, sample_mm=mm) for mm in (0.3, None))
    assert known.shape == (FACTS,)
    assert known[2:].tolist() == unknown[2:].tolist() == pytest.approx([0.5, math.log(1.2), 0.6])
    assert known[:2].tolist() != unknown[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("as_found", "off", "least", "most"), [(0.0, 0.0, 0.1, 0.8), (1.0, 0.0, 0.0, 0.6), (0.0, 1.0, 0.9, 4.0)]
)
def test_drawn_tubes_lie_near_a_needle_where_the_second_look_puts_them_or_off(
    monkeypatch, as_found, off, least, most
):
    monkeypatch.setattr(needle_sections, "_AS_FOUND", as_found)
    monkeypatch.setattr(needle_sections, "_OFF", off)
    torch.manual_seed(0)
    volume = opened(sample())
    mean = []
    for _ in range(24):
        tube = drawn_along(volume, Bright(), picture=0.0)
        on = tube["shaft"] == 1
        mean += [float(tube["offset"][:, on].norm(dim=0).mean())] if on.any() else []
    assert len(mean) > 20 and least < np.mean(mean) < most


def test_drawn_tubes_lie_along_a_needle_and_say_where_it_is(monkeypatch):
    monkeypatch.setattr(needle_sections, "_OFF", 0.0)
    torch.manual_seed(0)
    volume = opened(sample())
    for _ in range(8):
        tube = drawn_along(volume, Bright(), picture=0.0)
        on = tube["shaft"] == 1
        assert int(on.sum()) > 15 and float(tube["offset"][:, on].abs().max()) < 6
        assert tube["tube"].shape == (2, TUBE, 20, 20)
        slices = tube["tube"][0][on]
        across = torch.arange(20) - 9.5
        bright = (slices > 0.8).float()
        down = (bright.sum(2) * across).sum(1) / bright.sum((1, 2)).clamp_min(1)
        assert float((down - tube["offset"][0, on]).abs().mean()) < 0.6
        assert float(tube["thick"]) == 0, "about a millimetre and nearer to 22 than to 17 gauge"


def test_the_loss_is_least_where_the_axis_is():
    torch.manual_seed(1)
    truth = {key: value[None] for key, value in drawn_along(opened(sample()), Bright(), picture=0.0).items()}
    x = (2 * torch.arange(SECTIONS) + 1) / SECTIONS - 1
    slices = (2 * torch.arange(TUBE) + 1) / TUBE - 1
    on = truth["shaft"][0] == 1
    offset = [np.polyval(np.polyfit(slices[on], truth["offset"][0, n, on], 1), x) for n in (0, 1)]
    right = torch.tensor(np.stack([*offset, np.full(SECTIONS, 500.0)]))[None].float()
    sizes = torch.stack([truth["log_radius"], 9 * (2 * truth["thick"] - 1)], 1)
    least = float(section_loss(right, sizes, truth=truth))
    assert least < 0.15
    assert float(section_loss(right + torch.tensor([1.0, 0, 0])[:, None], sizes, truth=truth)) > least + 0.5
    assert float(section_loss(right, -sizes, truth=truth)) > least + 0.5


def test_the_third_look_learns_alone_from_what_the_second_of_earlier_weights_sees(tmp_path):
    earlier = tmp_path / "earlier.safetensors"
    save_file({k: v.contiguous() for k, v in new_network(SMALL).state_dict().items()}, earlier)
    settings = SMALL.model_copy(update={"look": "third", "init": str(earlier)})
    torch.manual_seed(0)
    network = new_network(settings)
    learning = {name.split(".")[0] for name, value in network.named_parameters() if value.requires_grad}
    assert learning == {"sections"}
    drawn = examples([sample(), sample(needle=False)], settings)
    assert isinstance(drawn, Shafts) and len(drawn) == 1, "volumes without a needle teach nothing here"
    assert drawn[0]["sections"].shape == (2, 2, SECTIONS, 20, 20)
    with pytest.raises(ValidationError, match="init"):
        Settings(look="third")
    with pytest.raises(ValidationError, match="kept"):
        Settings(look="third", init="earlier.safetensors", tubes=8, kept=4)


def test_kept_tubes_are_drawn_once_and_taken_by_turns():
    drawn = Shafts([sample()], new_network(SMALL).eval().fine, tubes=2, kept=4, picture=0.0)
    torch.manual_seed(0)
    taken = [drawn[0] for _ in range(12)]
    assert all(batch["sections"].shape == (2, 2, SECTIONS, 20, 20) for batch in taken)
    assert all(batch["sections"].dtype == torch.float32 for batch in taken)
    # The offset of a tube, mirrored or not, tells which it is.
    assert len({round(float(o[0, 60]), 4) for batch in taken for o in batch["offset"]}) == 4


def test_a_tube_is_mirrored_with_its_axis():
    read = torch.zeros(200, 2, SECTIONS, 20, 20)
    read[:, 1] = 2.0
    read[:, 0, :, 5, 14] = 1.0
    truth = {"sections": read, "offset": torch.tensor([-4.5, 4.5])[:, None].expand(200, 2, TUBE).clone()}
    torch.manual_seed(0)
    made = varied(truth)
    spot = made["sections"][:, 0].amax(1).flatten(1).argmax(1)
    assert set(spot.tolist()) == {5 * 20 + 14, 5 * 20 + 5}
    torch.testing.assert_close(made["offset"][:, 1, 0], (spot % 20) - 9.5)
    assert float(made["offset"][:, 0].unique()) == -4.5, "not upside down: what rings is below a needle"
    out = made["sections"][:, 1, :, 0, 0] == 0
    assert 0.04 < float(out.float().mean()) < 0.12
    assert float(read[:, 0].sum()) == 200 * SECTIONS, "what is kept stays as it was drawn"
