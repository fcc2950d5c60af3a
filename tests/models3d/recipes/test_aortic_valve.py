from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from models3d.recipes import aortic_valve as recipe
from models3d.recipes.aortic_valve import (
    BOXES,
    NEAR,
    Settings,
    Volumes,
    describe,
    losses,
    new_network,
    perturbed,
    prepare_labelled,
    source_of,
    truth_of,
)
from models3d.recipes.aortic_valve_patches import OFFSET_MM, Poses, corner_distance, random_rotations
from models3d.tasks import _aortic_shape as shape
from models3d.tasks._aortic_mesh import N_VERTICES
from usvol import quality
from usvol.canonical import canonicalise
from usvol.result import Labels
from usvol.scan import Grid, Scan

SIZE = torch.tensor([20.0, 30.0, 32.0])
SETTINGS = Settings(width=4, picture=0.0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sample(seed=0, *, present=True, in_view=1.0):
    """A dark ellipsoid in the frame of its box, in speckle; its mesh lies on it."""
    torch.manual_seed(seed)
    side = 64
    rotation, centre = random_rotations(1)[0], 5 * torch.randn(3)
    ticks = torch.arange(side) - (side - 1) / 2
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1)
    radius = (((points - centre) @ rotation) / (SIZE / 2)).norm(dim=-1)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = float(ticks[0])
    inside = (radius < 1) * present
    on = torch.nn.functional.normalize(torch.randn(N_VERTICES, 3), dim=1)
    box = {"centre_mm": centre.tolist(), "rotation": rotation.tolist(), "size_mm": SIZE.tolist()}
    return {
        "grey": torch.where(inside, 20, 150 + torch.randint(60, inside.shape)).to(torch.uint8),
        "inside": torch.ones(side, side, side, dtype=torch.uint8),
        "affine": affine,
        "root_share": (inside * 255).to(torch.uint8),
        "cusp_share": ((radius < 0.4) * 255 * present).to(torch.uint8),
        "present": present,
        "in_view": in_view if present else 0.0,
        "box": box if present else None,
        "vertices_mm": ((on * SIZE / 2) @ rotation.T + centre).tolist() if present else None,
    }


def test_examples_show_the_valve_where_their_targets_say():
    one = Volumes([sample()], SETTINGS)[0]
    assert (float(one["known"]), float(one["there"])) == (1, 1)
    place = np.unravel_index(int(one["position_heat"].argmax()), one["position_heat"].shape)
    assert float(one["position_volume"][(0, *place)]) < 0.3  # the middle of the ellipsoid is dark
    inside = one["aligned_shares"][0] > 0.9
    assert (
        float(one["aligned_cube"][0][inside].mean())
        < 0.2
        < 0.5
        < float(one["aligned_cube"][0][~inside].mean())
    )
    # The mesh lies on the boundary of the labels.
    index = ((one["aligned_points"] * 24 + 23.5).round().long()).clamp(0, 47)
    share = one["aligned_shares"][0][tuple(index.T)]
    assert 0.3 < float(share.mean()) < 0.7
    extents = inside.nonzero().amax(0) - inside.nonzero().amin(0)
    assert int(extents[0]) < int(extents[1:].min())  # upright: shortest along its own first axis


def test_targets_lead_from_every_box_and_place_to_the_truth():
    one_sample = sample()
    source = source_of(one_sample)
    truth, _ = truth_of(one_sample)
    assert truth is not None
    torch.manual_seed(3)
    poses = perturbed(truth, source)
    torch.manual_seed(3)
    boxes = recipe._boxes(source, truth)
    torch.testing.assert_close(boxes["own"], poses.size)
    centre = poses.centre + (poses.rotation @ boxes["move"][..., None])[..., 0]
    reached = Poses(centre, poses.rotation @ boxes["turn"], boxes["size"])
    assert float(corner_distance(reached, truth[[0] * BOXES]).max()) < 1e-3
    assert boxes["quality"][:3].min() > 0.1 > boxes["quality"][6]
    assert boxes["weight"].tolist()[5:] == [0, 0]


def test_patches_around_places_shrink_with_their_step():
    one_sample = sample()
    truth, _ = truth_of(one_sample)
    near = recipe._near(source_of(one_sample), truth)
    assert near["patch"].shape == (NEAR, 3, 16, 16, 16)
    # All but the three turned any way, the last of which is elsewhere, are near enough to be corrected.
    assert near["weight"].tolist()[:-3] == [1] * (NEAR - 3)
    assert near["weight"][-1] == 0
    assert near["quality"][-1] < 0.01 < near["quality"][:-3].min()
    ratio = near["size"] / SIZE
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 3))
    assert float(near["move"][:-1].norm(dim=1).max()) < 3 * OFFSET_MM


@pytest.mark.parametrize(
    ("options", "known", "there"),
    [({"present": False}, 1, 0), ({"in_view": 0.3}, 0, 0), ({"in_view": 0.7}, 1, 1)],
)
def test_a_valve_hardly_in_view_teaches_nothing(options, known, there):
    one = Volumes([sample(**options)], SETTINGS)[0]
    assert (float(one["known"]), float(one["there"])) == (known, there)
    if not there:
        assert not one["position_heat"].any()
        assert not one["box_quality"].any()


def test_all_networks_learn():
    batch = default_collate([Volumes([sample(k, present=k != 2)], SETTINGS)[0] for k in range(3)])
    network = new_network(SETTINGS).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.003)
    history = []
    for _ in range(5):
        parts = losses(network, batch, settings=SETTINGS)
        optimiser.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        optimiser.step()
        history.append({name: float(value.detach()) for name, value in parts.items()})
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for n, p in network.named_parameters()
        if "auxiliary" not in n
    )
    assert all(history[-1][name] < history[0][name] for name in history[0]), history


def test_one_network_learns_alone_and_the_others_stay():
    settings = Settings(width=4, picture=0.0, networks=("position",))
    batch = default_collate([Volumes([sample(k)], settings)[0] for k in range(2)])
    assert {name.partition("_")[0] for name in batch} == {"known", "there", "position"}
    network = new_network(settings).train()
    recipe.loss(network, batch, settings=settings).backward()
    learning = {n.partition(".")[0] for n, p in network.named_parameters() if p.grad is not None}
    assert learning == {"position"}


def test_shares_are_those_of_the_labels_at_a_millimetre():
    labels = np.zeros((1, 40, 40, 40), np.uint8)
    labels[:, 10:30, 10:30, 10:30] = 1
    labels[:, 18:22, 12:28, 12:28] = 2
    grid = Grid((40, 40, 40), (0.8, 0.8, 0.8))
    data = torch.full((1, 1, 40, 40, 40), 90, dtype=torch.uint8)
    truth = Labels("truth", torch.from_numpy(labels), grid, {1: "aortic_root", 2: "cusps"})
    kept = prepare_labelled(canonicalise(Scan(data, grid)), truth)
    assert kept["grey"].shape == (32, 32, 32)
    assert float(kept["root_share"].float().sum()) / 255 == pytest.approx(16**3, rel=0.02)
    assert float(kept["cusp_share"].float().sum()) / 255 == pytest.approx(3.2 * 12.8**2, rel=0.05)


def test_the_shape_model_and_the_gate_are_kept_beside_the_weights():
    network = new_network(SETTINGS).eval()
    samples = [sample(k) for k in range(4)]
    kept = describe(network, [*samples, sample(9, present=False)], held=samples[:2], settings=SETTINGS)
    model = shape.from_tensors(kept)
    assert model.modes.shape[0] == 3
    assert quality.from_tensors(kept) is not None
