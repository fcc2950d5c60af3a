from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from models3d.data import pairs
from usvol.errors import DatasetError


@pytest.fixture(scope="module")
def simulator(benchmark_module):
    return benchmark_module("other_simulator")


def scene_of(simulator, seed=3, level=1):
    return simulator.draw_scene(np.random.default_rng(seed), level)


def lattice(scene, step=2.0):
    """Points every ``step`` mm around the sac."""
    reach = np.arange(-70, 70, step)
    grid = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1).reshape(-1, 3)
    return grid + scene.sac.centre


def test_anatomy_has_the_sizes_of_the_first_trimester(simulator):
    scene, facts = scene_of(simulator)
    labels, material = simulator.look(scene, lattice(scene))
    volume_ml = np.bincount(labels, minlength=4) * 8 / 1000
    assert 10 < volume_ml[1] < 160
    assert 25 < volume_ml[2] < 330
    assert 0.5 < volume_ml[3] < 80
    assert 10 <= facts["age_weeks"] <= 14.2
    assert {simulator.NAMES.index(name) for name in ("bone", "fluid", "placenta", "decidua")} <= set(material)


def test_the_same_seed_gives_the_same_anatomy_and_another_another(simulator):
    points = lattice(scene_of(simulator)[0], step=6.0)
    same, again, other = (simulator.look(scene_of(simulator, seed)[0], points)[0] for seed in (3, 3, 5))
    assert (same == again).all()
    assert (same != other).any()


@pytest.mark.parametrize("kind", ["box", "cone", "curved"])
def test_beams_and_world_undo_each_other(simulator, kind):
    half = 40.0 if kind == "box" else 0.6
    probe = simulator.Probe(
        kind, 12.0 if kind == "cone" else 50.0, 12.0 if kind == "cone" else 25.0, half, half, 90.0
    )
    beams = np.random.default_rng(0).uniform((-half, -half, 0), (half, half, 90), (500, 3))
    np.testing.assert_allclose(probe.to_beams(probe.to_world(beams)), beams, atol=1e-9)
    assert probe.sees(beams).all()
    assert not probe.sees(beams + np.array([0, 0, 91])).any()


def test_speckle_of_one_look_is_rayleigh_and_of_more_is_calmer(simulator):
    def snr(looks):
        field = simulator.speckle(
            np.random.default_rng(0), (40, 40, 60), spread=np.array([1, 1, 0.6]), looks=looks
        )
        return field.mean() / field.std()

    assert snr(1) == pytest.approx(1.91, abs=0.05)
    assert snr(3) > 1.5 * snr(1)


def tiny(simulator):
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1, 2, 3], labels[4, 5, 6], labels[3, 3, 3] = 1, 2, 3
    return simulator.Volume(labels / 4.0, labels, np.array([1.0, 0.5, 0.7]), np.zeros(3))


def test_what_is_written_is_read_by_the_pairs_adapter(simulator, tmp_path):
    for seed in range(6):
        how = simulator.write(
            tmp_path, f"c{seed}", volume=tiny(simulator), rng=np.random.default_rng(seed), level=2
        )
        assert np.abs(np.linalg.det(np.array(how["affine"]))) == pytest.approx(0.35)
    (tmp_path / "labels.json").write_text('{"labels": {"placenta": 1, "gestational_sac": 2, "fetus": 3}}')
    found = pairs.cases(tmp_path)
    assert len(found) == 6
    names = {1: "fetus", 2: "placenta", 3: "gestational_sac"}
    assert pairs.read_labels(found[0], names=names).data.unique().tolist() == [0, 1, 2, 3]
    with pytest.raises(DatasetError):
        pairs.read_labels(found[0], names={1: "fetus"})


def test_an_easy_header_places_every_storage_order_alike(simulator, tmp_path):
    apart = set()
    for seed in range(8):
        simulator.write(tmp_path, "c", volume=tiny(simulator), rng=np.random.default_rng(seed), level=0)
        image = nib.load(tmp_path / "labels" / "c.nii.gz")
        data = np.asarray(image.dataobj)
        first, second = (image.affine[:3, :3] @ np.argwhere(data == value)[0] for value in (1, 2))
        apart.add(tuple(np.round(second - first, 4)))
    assert apart == {(-2.1, -1.5, 3.0)}
