from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

from models3d.nets.head_pose import frame_of
from models3d.recipes import _midsagittal_examples as examples
from models3d.recipes._midsagittal_examples import (
    COARSE_REACH,
    FINE_REACH,
    Cube,
    View,
    any_axes,
    cut,
    pose_example,
    view_of,
)
from models3d.recipes._midsagittal_finding import spheres
from models3d.recipes._midsagittal_scores import UNCERTAIN, errors, row, score
from models3d.recipes.midsagittal_plane import (
    TRAINING,
    Settings,
    Views,
    finder_loss,
    loss,
    new_network,
    pose_loss,
    prepare,
)
from usvol.result import Flag, Measurement, Plane, Result, Severity
from usvol.scan import Frame, Grid, Scan, Source
from usvol.training.cases import Case

SMALL = Settings(view=16, sides=(16, 16), widths=(4, 6, 8), picture=0.0)
TURN = Rotation.from_euler("zyx", (30, -50, 80), degrees=True).as_matrix()


def head_axes() -> np.ndarray:
    forward, up = TURN[:, 0], TURN[:, 1]
    return np.stack([forward, np.cross(forward, up), up], 1)


def marked_view() -> View:
    """A dim ellipsoid with a bright ball at its front end and a half bright one at its top."""
    axes, radii, centre = head_axes(), np.array([12.0, 9.0, 10.0]), np.array([22.0, 26.0, 20.0])
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (46, 50, 42)], indexing="ij"), -1)
    local = (index - centre) @ axes
    grey = 0.3 * ((local / radii) ** 2).sum(-1).__lt__(1).astype(np.float32)
    for column, value in ((0, 1.0), (2, 0.6)):
        place = np.eye(3)[column] * radii * 0.75
        grey[((local - place) ** 2).sum(-1) < 25] = value
    tensors = (torch.from_numpy(v).float() for v in (centre, radii, axes))
    return View(torch.from_numpy(grey), torch.ones(46, 50, 42, dtype=torch.bool), *tensors)


def truth() -> dict:
    axes = head_axes()
    return {
        "present": True,
        "plane": {
            "point": [5.0, 60.0, -3.0],
            "forward": axes[:, 0].tolist(),
            "normal": axes[:, 1].tolist(),
            "up": axes[:, 2].tolist(),
        },
        "centre_mm": [5.0, 60.0, -3.0],
        "radii_mm": [40.0, 30.0, 34.0],
        "bpd_mm": 60.0,
        "ofd_mm": 80.0,
    }


def true_plane(turned_deg: float = 0.0, moved_mm: float = 0.0) -> Plane:
    axes = head_axes()
    turned = Rotation.from_rotvec(axes[:, 0] * math.radians(turned_deg)).as_matrix() @ axes
    point = np.array([5.0, 60.0, -3.0]) + moved_mm * axes[:, 1]
    return Plane("midsagittal_plane", tuple(point), tuple(turned[:, 1]), tuple(turned[:, 2]), confidence=0.8)


def test_a_cube_in_the_heads_own_axes_shows_it_upright():
    view = marked_view()
    assert view.centre is not None
    assert view.frame is not None
    grey, mask = cut(view, Cube(view.centre, 15.0, view.frame), side=30)
    assert mask.any()
    front, top = grey[15 + 9, 15, 15], grey[15, 15, 15 + 7]
    assert float(front) == pytest.approx(1.0, abs=0.05)
    assert float(top) == pytest.approx(0.6, abs=0.1)
    assert float(grey[15 - 9, 15, 15]) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("near", [False, True])
def test_the_pose_told_is_where_the_marks_are(near):
    """Reading the brightest ball from the cube must give the direction that the truth calls forward."""
    view, reach = marked_view(), FINE_REACH if near else COARSE_REACH
    torch.manual_seed(3)
    told = 0
    for _ in range(12):
        # A mask channel of ones and no variation of grey: what is in the cube is the resampled volume.
        cube, numbers = pose_example(view, side=48, picture=0.0, near=near)
        if numbers[12] < 1:
            continue
        bright = (cube[0] > 0.8).nonzero().float()
        if len(bright) < 3:
            continue
        place = (bright.mean(0) + 0.5) / 48 * 2 - 1
        expected = numbers[6:9] + numbers[0:3] * torch.exp(numbers[9]) / reach * 0.75
        torch.testing.assert_close(place, expected, atol=0.06, rtol=0)
        told += 1
    assert told >= 8


@pytest.mark.parametrize(("near", "limit_deg"), [(False, 30.0), (True, 12.0)])
def test_a_cube_counts_as_aligned_where_forward_and_up_are_its_axes(near, limit_deg):
    view = marked_view()
    torch.manual_seed(1)
    seen = {True: 0, False: 0}
    for _ in range(120):
        numbers = pose_example(view, side=16, picture=0.0, near=near)[1]
        if not numbers[12]:
            continue
        forward, up = numbers[0:3].numpy(), numbers[3:6].numpy()
        turn = np.stack([forward, np.cross(up, forward), up], 1)
        angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
        assert bool(numbers[13]) == (angle < limit_deg)
        assert numbers[14] or angle > limit_deg
        seen[bool(numbers[13])] += 1
    assert min(seen.values()) > 15


def test_truth_moves_from_the_world_to_the_samples_of_an_oblique_volume():
    rows = Rotation.from_euler("zyx", (10, 20, -40), degrees=True).as_matrix().tolist()
    direction = (tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))
    grid = Grid((30, 40, 36), (2.0, 1.5, 1.0), (-20.0, 5.0, -30.0), direction, Frame.PROBE)
    data = torch.randint(0, 255, (1, 1, *grid.shape), dtype=torch.uint8)
    kept = prepare(Scan(data, grid))
    assert max(kept["grey"].shape) == 64
    view = view_of({**kept, **truth()})
    assert view.centre is not None
    assert view.frame is not None
    assert view.radii is not None
    back = kept["affine"].numpy() @ np.append(view.centre.numpy(), 1)
    np.testing.assert_allclose(back[:3], truth()["centre_mm"], atol=1e-3)
    np.testing.assert_allclose(np.asarray(direction) @ view.frame.numpy(), head_axes(), atol=1e-5)
    step = np.linalg.norm(kept["affine"].numpy()[:3, :3], axis=0).mean()
    np.testing.assert_allclose(view.radii.numpy() * step, truth()["radii_mm"], rtol=1e-5)


@pytest.mark.parametrize(("across", "kept"), [(40, 64), (90, 90), (150, 112)])
def test_volumes_are_kept_about_as_fine_as_they_are(across, kept):
    grid = Grid((20, across, 30), (1.0, 0.5, 0.5))
    data = torch.randint(0, 255, (1, 1, *grid.shape), dtype=torch.uint8)
    sample = prepare(Scan(data, grid))
    assert max(sample["grey"].shape) == max(sample["mask"].shape) == kept


def test_losses_are_least_for_the_truth_and_ignore_poses_of_nothing():
    axes = torch.stack([any_axes() for _ in range(6)])
    true = torch.randn(6, 15) * 0.1
    true[:, 0:3], true[:, 3:6] = axes[:, :, 0], axes[:, :, 2]
    true[:, 12:] = 1.0
    right = true[:, :14].clone()
    right[:, 12:] = 12.0
    assert float(pose_loss(right, true)) < 1e-3
    assert float(pose_loss(right + 0.3, true)) > 0.1
    true[:, 14] = 0
    assert float(pose_loss(torch.cat([-right[:, :12], right[:, 12:]], 1), true)) < 1e-3, "not to be read"
    empty = torch.zeros(6, 15)
    said = torch.randn(6, 14)
    said[:, 12] = -12
    assert float(pose_loss(said, empty)) < 1e-3
    inside = (torch.rand(2, 4, 4, 4) > 0.5).float()
    assert float(finder_loss(20 * (2 * inside - 1), inside)) < 0.02


def sample(*, present: bool) -> dict:
    grid = Grid((20, 22, 24), (4.0, 4.0, 4.0), (-40.0, 20.0, -48.0))
    return {**prepare(Scan(torch.rand(1, 1, 20, 22, 24), grid)), **truth(), "present": present}


def test_the_recipe_learns_on_views_with_and_without_a_head():
    torch.manual_seed(0)
    data = TRAINING.examples([sample(present=True), sample(present=False)], SMALL)
    batch = torch.utils.data.default_collate([data[0], data[1]])
    assert not batch["coarse_pose"][1].any() and batch["inside"][0].any() and not batch["inside"][1].any()
    network = new_network(SMALL)
    value = loss(network, batch, settings=SMALL)
    value.backward()
    assert torch.isfinite(value)
    assert frame_of(network.fine(batch["fine"][:, 0])).shape == (2, 3, 3)


def test_errors_are_those_of_the_definition():
    assert max(errors(true_plane(), truth()).values()) == pytest.approx(0, abs=1e-5)
    moved = errors(true_plane(moved_mm=-3.0), truth())
    assert moved["distance_mm"] == pytest.approx(3.0) and moved["offset_mm"] == pytest.approx(3.0)
    assert moved["angle_deg"] == pytest.approx(0, abs=1e-5)
    tilted = errors(true_plane(turned_deg=10.0), truth())
    assert tilted["angle_deg"] == pytest.approx(10.0) and tilted["turn_deg"] == pytest.approx(10.0)
    # Mean of |z| over an ellipse of half axis 34 is 4/(3π) of it.
    assert tilted["distance_mm"] == pytest.approx(
        4 / (3 * math.pi) * 34 * math.sin(math.radians(10)), rel=0.01
    )
    back_to_front = errors(true_plane(turned_deg=180.0), truth())
    assert back_to_front["angle_deg"] == pytest.approx(0, abs=1e-5)
    assert back_to_front["turn_deg"] == pytest.approx(180.0)


def case(present: bool) -> Case:
    reference = truth() if present else {"present": False}
    return Case("a", "a", Path(), reference, dataset="simulated")


def test_a_missed_head_counts_against_every_share():
    grid = Grid((10, 10, 10), (1.0, 1.0, 1.0))
    hit = Result("t", grid, Source(), (true_plane(moved_mm=1.0),), (Measurement("bpd", 61.0, "mm"),))
    nothing = Result("t", grid, Source(), (), ())
    rows = [row(hit, case(True)), row(nothing, case(True)), row(nothing, case(False)), row(hit, case(False))]
    values = {k: e.value for k, e in score(rows, ["a", "b", "c", "d"]).items()}
    assert values["under_4mm"] == values["under_10deg"] == values["missed"] == values["no_head_recall"] == 0.5
    assert rows[0]["bpd_error_mm"] == pytest.approx(1.0)
    assert "distance_mm" not in rows[3]


def test_planes_that_are_flagged_as_uncertain_are_counted_apart():
    grid, flag = Grid((10, 10, 10), (1.0, 1.0, 1.0)), Flag(UNCERTAIN, "hardly seen", Severity.WARNING)
    right = Result("t", grid, Source(), (true_plane(),), ())
    wrong = Result("t", grid, Source(), (true_plane(turned_deg=60.0),), (), (flag,))
    rows = [row(result, case(True)) for result in (right, right, right, wrong)]
    values = {k: e.value for k, e in score(rows, ["a", "b", "c", "d"]).items()}
    assert values["under_10deg"] == values["under_20deg"] == 0.75
    assert values["under_4mm_certain"] == values["under_10deg_certain"] == values["under_20deg_certain"] == 1
    assert values["uncertain"] == 0.25


def test_the_finder_tells_every_part_that_looks_like_a_head_largest_first():
    grey = torch.zeros(40, 40, 40)
    grey[4:14, 4:14, 4:14] = 1  # 10³, and 6³
    grey[26:32, 26:32, 26:32] = 1
    view = View(grey, torch.ones(40, 40, 40, dtype=torch.bool))

    def finder(inputs: torch.Tensor) -> torch.Tensor:
        return 20 * (torch.nn.functional.avg_pool3d(inputs[:, 0], 2) - inputs[:, 0].mean()) - 1

    found = spheres(view, finder, side=32)
    assert len(found) == 2
    assert found[0].radius > found[1].radius
    assert found[0].centre.tolist() == pytest.approx([8.5] * 3, abs=1)
    assert found[1].centre.tolist() == pytest.approx([28.5] * 3, abs=1)
    assert spheres(view, lambda inputs: finder(inputs) - 1e3, side=32) == []


def test_what_looks_like_a_head_is_shown_as_none(monkeypatch):
    monkeypatch.setattr(examples, "_ALIKE", 1.0)
    grey = torch.zeros(48, 48, 48)
    grey[6:18, 6:18, 6:18] = 1
    view = View(grey, torch.ones(48, 48, 48, dtype=torch.bool))
    for near in (False, True):
        drawn = [
            pose_example(view, side=16, picture=0.0, near=near, alike=[(torch.full((3,), 11.5), 6.0)])
            for _ in range(8)
        ]
        assert all(float(truth[12]) == 0 for _, truth in drawn)
        assert all(cube[0, 6:10, 6:10, 6:10].mean() > cube[0].mean() for cube, _ in drawn)


def test_readers_learn_from_what_the_finder_of_earlier_weights_takes_for_a_head(tmp_path):
    with pytest.raises(ValidationError, match="alike"):
        Settings(alike=True)
    earlier = new_network(SMALL)
    for values in earlier.finder.parameters():
        values.data.zero_()  # a chance of one half everywhere: all of the view looks like a head
    state = {name: values.contiguous() for name, values in earlier.state_dict().items()}
    save_file(state, tmp_path / "earlier.safetensors")
    learning = SMALL.model_copy(update={"alike": True, "init": str(tmp_path / "earlier.safetensors")})
    views = Views([sample(present=True), sample(present=False)], learning)
    assert all(torch.isfinite(values).all() for values in views[1].values())
    (everything,) = views.alike[1]
    assert everything[1] > 10
    views[0]
    assert views.alike[0] == []  # that is where the head lies
