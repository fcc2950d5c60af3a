from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from models3d.phantoms._fetal_head_anatomy import HEAD_MATERIALS, INDEX, bpd_mm
from models3d.phantoms._fetal_head_scene import FIRST_HEAD
from models3d.phantoms.fetal_head import Config, draw, simulate
from usvol.errors import DatasetError

ATLAS = Path(__file__).parents[4] / "shared" / "data" / "atlas" / "fetal_brain"
QUICK = {"size": 48, "beams": 0.4}


@cache
def head(seed, **given):
    return draw(seed, Config(**{"present": True, "cut": False, "beams": 0.7, **given}))


@cache
def volume(seed, **given):
    return simulate(seed, Config(**QUICK, **given))


def places(drawn, *materials):
    """World points (n, 3) of the voxels of some head materials, in the head's own axes as parts of it."""
    wanted = torch.tensor([FIRST_HEAD + INDEX[name] for name in materials], dtype=torch.uint8)
    index = torch.isin(drawn.anatomy.materials, wanted).nonzero().numpy()
    world = drawn.anatomy.grid.to_world(index)
    return (world - drawn.centre_mm) @ drawn.frame / drawn.radii_mm


def test_same_seed_same_volume_other_seed_another():
    scan, truth = volume(1, present=True)
    again, truth_again = simulate(1, Config(**QUICK, present=True))
    assert torch.equal(scan.data, again.data) and truth == truth_again
    assert not np.allclose(head(1).frame, head(2).frame)
    assert json.loads(json.dumps(truth))["seed"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_plane_halves_the_head_and_faces_its_left(seed):
    drawn = head(seed)
    assert drawn.frame is not None
    forward, left, up = drawn.frame.T
    np.testing.assert_allclose(drawn.frame.T @ drawn.frame, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(left, np.cross(forward, up), atol=1e-9)
    skull = places(drawn, "skull", "suture", "dense_skull")
    assert abs(skull[:, 1].mean()) < 0.05
    assert np.abs(skull).max(0) == pytest.approx(np.ones(3), abs=0.25)
    assert places(drawn, "face")[:, 0].mean() > 0.2, "the face is in front"
    assert places(drawn, "neck")[:, 2].mean() < -0.8, "the neck is below"


def test_sizes_follow_the_chart():
    for weeks in (11, 20, 34):
        drawn = head(5, weeks=weeks)
        assert 2 * drawn.radii_mm[1] == pytest.approx(bpd_mm(weeks), rel=0.2)
        assert 0.69 < drawn.radii_mm[1] / drawn.radii_mm[0] < 0.89


def test_skull_echoes_are_bright_and_fluid_is_dark():
    scan, truth = volume(4, present=True, cut=False, shadowed=False, weeks=22)
    axes = np.array([truth["plane"][k] for k in ("forward", "normal", "up")]).T
    rng = np.random.default_rng(0)
    way = rng.standard_normal((4000, 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)

    def grey(share):
        world = np.array(truth["centre_mm"]) + (way * truth["radii_mm"] * share) @ axes.T
        index = scan.grid.to_index(world).round().astype(int)
        inside = ((index >= 0) & (index < scan.grid.shape)).all(1)
        return float(scan.data[0, 0].numpy()[tuple(index[inside].T)].mean())

    assert grey(0.97) > 1.5 * grey(0.7)


def test_without_a_head_nothing_of_one_is_drawn_or_told():
    drawn = head(6, present=False)
    assert drawn.frame is None
    assert int(drawn.anatomy.materials.max()) < FIRST_HEAD
    truth = volume(6, present=False)[1]
    assert truth["present"] is False and not {"plane", "centre_mm", "bpd_mm"} & set(truth)


def test_a_head_cut_by_the_view_says_how_much_is_seen():
    assert 0.2 < volume(1, present=True, cut=True)[1]["in_view"] < 0.97
    assert volume(4, present=True, cut=False, shadowed=False, weeks=22)[1]["in_view"] > 0.97


def test_dense_skull_lies_towards_the_probe():
    drawn = head(7, shadowed=True)
    assert drawn.frame is not None
    dense, plain = (places(drawn, name) @ drawn.frame.T for name in ("dense_skull", "skull"))
    assert len(dense) and dense[:, 1].mean() < plain[:, 1].mean()


@pytest.mark.skipif(not ATLAS.is_dir(), reason="the fetal brain atlas is not there")
def test_a_head_from_the_atlas_has_its_brain_the_right_way_round():
    drawn = head(1, atlas=ATLAS / "GA25_notoperated")
    assert places(drawn, "cerebellum")[:, 0].mean() < -0.3
    assert abs(places(drawn, "brain")[:, 1].mean()) < 0.03
    assert places(drawn, "callosum")[:, 2].mean() > places(drawn, "cerebellum")[:, 2].mean() + 0.3
    assert np.abs(places(drawn, "falx")[:, 1]).max() < 0.15
    seen = set((drawn.anatomy.materials.unique() - FIRST_HEAD).tolist())
    assert {"skull", "ventricle", "face"} <= {HEAD_MATERIALS[v] for v in seen if v < len(HEAD_MATERIALS)}


def test_a_folder_without_an_atlas_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="parcellation"):
        draw(1, Config(atlas=tmp_path))
