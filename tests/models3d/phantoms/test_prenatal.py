from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from models3d.phantoms._fetus import crl_of
from models3d.phantoms._uterus import SITES
from models3d.phantoms.prenatal import Config, draw, simulate, simulate_labelled

NAMES = ("placenta", "gestational_sac", "fetus")


@cache
def young(seed):
    return draw(seed, Config(weeks=10))


@cache
def volume(seed, *, cut):
    return simulate_labelled(seed, Config(size=64, weeks=10, cut=cut))


def parts(labels):
    array = labels.numpy()
    return [array == value for value in (1, 2, 3)]


def test_same_seed_same_volume_other_seed_another():
    first, labels, truth = volume(1, cut=False)
    again, truth_again = simulate(1, Config(size=64, weeks=10, cut=False))
    assert torch.equal(first.data, again.data)
    assert truth == truth_again
    assert labels.data.any()
    assert young(0).facts != young(1).facts


def test_scan_labels_and_truth_fit_together():
    scan, labels, truth = volume(1, cut=False)
    assert scan.data.shape[:2] == (1, 1) and scan.data.dtype == torch.uint8
    assert labels.grid == scan.grid and labels.data.shape == (1, *scan.grid.shape)
    assert set(labels.names.values()) == set(NAMES)
    assert max(scan.grid.shape) <= 64
    assert scan.sector is not None
    assert not labels.data[0][~scan.sector.mask].any()
    assert json.loads(json.dumps(truth))["seed"] == 1
    voxel_ml = float(np.prod(scan.grid.require_spacing_mm("volume"))) / 1000
    for value, name in enumerate(NAMES, start=1):
        shown = int((labels.data == value).sum()) * voxel_ml
        assert shown == pytest.approx(truth["volume_in_view_ml"][name], rel=0.08, abs=0.3)


@pytest.mark.parametrize("seed", range(3))
def test_structures_nest(seed):
    pregnancy = young(seed)
    placenta, sac, fetus = parts(pregnancy.labels)
    voxel_ml = float(np.prod(pregnancy.anatomy.grid.require_spacing_mm("volume"))) / 1000
    for mask, name in zip((placenta, sac, fetus), NAMES, strict=True):
        assert mask.sum() * voxel_ml == pytest.approx(pregnancy.facts["volume_ml"][name], rel=1e-3)
    # All around the fetus is the sac, but where it lies on the wall.
    shell = ndimage.binary_dilation(fetus) & ~fetus
    assert (shell & ~sac).sum() < 0.08 * shell.sum()
    rim = ndimage.binary_dilation(placenta) & sac
    assert rim.sum() * pregnancy.anatomy.grid.spacing_mm[0] ** 2 > 200  # mm²
    whole, count = ndimage.label(sac | fetus)
    assert np.bincount(whole.ravel())[1:].max() > 0.995 * (sac | fetus).sum(), count


def test_every_choice_occurs():
    facts = [young(seed).facts for seed in range(10)]
    assert len({f["placenta_site"] for f in facts}) >= 3
    assert len({f["style"] for f in facts}) >= 3
    seen = [set(f["present"]) for f in facts]
    for name in ("membrane", "cord", "skull", "fetal_bone", "choroid_plexus", "myometrium"):
        assert 0 < sum(name in s for s in seen) < len(seen), name
    for name in NAMES:
        volumes = [f["volume_ml"][name] for f in facts]
        assert min(volumes) > 0.4
        assert max(volumes) > 1.3 * min(volumes)


@pytest.mark.parametrize("site", SITES[:2])
def test_site_is_where_it_is_asked_for(site):
    pregnancy = draw(3, Config(placenta_site=site, weeks=10))
    placenta, sac, _ = parts(pregnancy.labels)
    assert pregnancy.facts["placenta_site"] == site
    above = np.argwhere(placenta)[:, 1].mean() - np.argwhere(sac)[:, 1].mean()
    if site == "anterior":
        assert above < 0
    if site == "posterior":
        assert above > 0


def test_length_follows_age_and_size_of_fetus_follows_length():
    # Robinson and Fleming 1975: 55 mm at 12 weeks and a day or so
    assert crl_of(85) == pytest.approx(55.7, abs=0.5)
    before = young(4).facts
    old = draw(4, Config(weeks=13.5)).facts
    assert old["crl_mm"][0] > 2 * before["crl_mm"][0]
    assert old["volume_ml"]["fetus"] > 4 * before["volume_ml"]["fetus"]


@pytest.mark.parametrize("seed", range(3, 5))
def test_crown_rump_length_is_that_of_the_label(seed):
    pregnancy = young(seed)
    points = np.argwhere(parts(pregnancy.labels)[2]) * pregnancy.anatomy.grid.spacing_mm[0]
    spread = np.ptp(points @ np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0])
    assert spread == pytest.approx(pregnancy.facts["crl_mm"][0], rel=0.2)


def test_twins_are_two_and_none_is_none():
    twins = draw(1, Config(fetuses=2, weeks=10.5))
    _, count = ndimage.label(ndimage.binary_opening(parts(twins.labels)[2], iterations=2))
    assert twins.facts["fetuses"] == count == len(twins.facts["crl_mm"]) == 2
    nothing = draw(1, Config(empty=True))
    assert not nothing.labels.any()
    assert nothing.facts["fetuses"] == 0 and nothing.facts["gestational_age_weeks"] is None


def test_cut_is_what_lies_outside_the_view():
    whole, part = volume(1, cut=False)[2], volume(1, cut=True)[2]
    for truth in (whole, part):
        for name in NAMES:
            lost = truth["volume_in_view_ml"][name] < 0.995 * truth["volume_ml"][name]
            assert truth["cut"][name] == lost
    assert part["cut"]["gestational_sac"]
    assert not whole["cut"]["gestational_sac"]


def test_grid_is_what_was_asked_for():
    scan, labels, _ = simulate_labelled(
        0, Config(size=64, weeks=10, spacing_mm=(1.4, 1.0, 1.2), style="dark")
    )
    assert scan.grid.spacing_mm == pytest.approx((1.4, 1.0, 1.2))
    assert labels.data.any()
    with pytest.raises(ValidationError):
        Config(size=32)
    with pytest.raises(ValidationError):
        Config(weks=12)
