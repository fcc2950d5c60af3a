"""The task around a stand-in network that reads grey levels: a phantom of ellipsoids with known answers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models3d.recipes.prenatal import Settings
from models3d.tasks import prenatal
from models3d.tasks._prenatal_anatomy import FETUS, PLACENTA, SAC, chances_of, surface_of_mask, tidy
from usvol import pipeline, quality
from usvol.canonical import canonicalise
from usvol.metrics import dice
from usvol.resampling import restore
from usvol.result import Labels, Surface
from usvol.runtime import Network
from usvol.scan import Grid, Scan

GREY = {0: 90, PLACENTA: 160, SAC: 20, FETUS: 230}
LEVELS = torch.tensor([GREY[k] for k in range(4)])
SPACING = (1.0, 1.0, 1.0)  # and 72 samples: what the network sees is not interpolated
AXES_MM = {SAC: (20.0, 24.0, 18.0), FETUS: (8.0, 13.0, 7.0)}


def read_grey(volumes):
    """Answer with the label whose grey level is nearest; the sector lies between 1 and 250."""
    grey = volumes[:, :1] * (GREY[FETUS] - GREY[SAC]) + GREY[SAC]
    logits = -((grey - LEVELS.reshape(1, 4, 1, 1, 1)) ** 2) / 200
    return logits, F.avg_pool3d(volumes, volumes.shape[-1]).flatten(1)


def read_grey_lopsided(volumes):
    """As ``read_grey``, but the further along its first and last axis, the sooner it says sac."""
    logits, features = read_grey(volumes)
    ramp = torch.linspace(-20, 20, volumes.shape[-1])
    logits[:, SAC] += ramp[:, None, None] + ramp
    return logits, features


def task(read=read_grey, **config):
    network = Network(read, "torch", "cpu", "f32", 0.0)
    chosen = prenatal.Config(**{"closer": False, "flips": False, **config})
    return prenatal.Prenatal(network, Settings(size=72), chosen, provenance={"task": "prenatal"})


def ellipsoid(shape, centre_mm, axes_mm):
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return ((((index + 0.5) * SPACING - centre_mm) / axes_mm) ** 2).sum(-1) <= 1


def scene(shape=(64, 72, 68), shift_mm=(0.0, 0.0, 0.0)):
    """Sac with a fetus in it, a placenta on its wall; returns grey levels and labels."""
    middle = np.asarray(shape) * SPACING / 2 + shift_mm
    labels = np.zeros(shape, np.uint8)
    labels[ellipsoid(shape, np.add(middle, (0, 22, 0)), (14.0, 9.0, 14.0))] = PLACENTA
    labels[ellipsoid(shape, middle, AXES_MM[SAC])] = SAC
    labels[ellipsoid(shape, np.add(middle, (3, -4, 2)), AXES_MM[FETUS])] = FETUS
    grey = np.vectorize(GREY.get)(labels) + np.random.default_rng(0).normal(0, 4, shape)
    # Bright specks, so that in a wide view the fetus is not all that is bright.
    specks = np.random.default_rng(1).random([-(-n // 3) for n in shape]) < 0.02
    specks = specks.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(slice(n) for n in shape)]
    grey[specks & (labels == 0)] = GREY[FETUS]
    return grey.clip(1, 250).astype(np.uint8), labels


def scan_of(grey, spacing=SPACING):
    return Scan(torch.from_numpy(np.ascontiguousarray(grey))[None, None], Grid(grey.shape, spacing))


def labels_in(result):
    return next(f for f in result.findings if isinstance(f, Labels))


def measured(result):
    return {m.name: m for m in result.measurements}


def codes(result):
    return {flag.code for flag in result.flags}


@pytest.fixture(scope="module")
def answer():
    grey, labels = scene()
    return pipeline.run(task(flips=True), scan_of(grey)), labels


def test_labels_lie_on_the_input_grid_and_are_right(answer):
    result, labels = answer
    found = labels_in(result)
    assert found.grid == result.grid
    assert found.names == {1: "placenta", 2: "gestational_sac", 3: "fetus"}
    assert found.evidence is None
    assert all(dice(found.data[0] == k, labels == k) > 0.95 for k in (PLACENTA, SAC, FETUS))


def test_volumes_are_right_and_lie_in_their_range(answer):
    result, _ = answer
    fetus_ml, whole_ml = (4 / 3 * math.pi * math.prod(AXES_MM[k]) / 1000 for k in (FETUS, SAC))
    numbers = measured(result)
    assert numbers["fetus_volume"].value == pytest.approx(fetus_ml, rel=0.05)
    assert numbers["whole_sac_volume"].value == pytest.approx(whole_ml, rel=0.05)
    assert numbers["gestational_sac_volume"].value == pytest.approx(whole_ml - fetus_ml, rel=0.05)
    for number in (m for m in result.measurements if m.unit == "mL"):
        assert number.low <= number.value <= number.high
    assert not codes(result) & {"cut_by_sector_edge", "implausible_size"}


def test_surfaces_are_closed_and_of_the_right_size(answer):
    import pyvista

    result, _ = answer
    fetus = next(f for f in result.findings if isinstance(f, Surface) and f.name == "fetus")
    faces = np.hstack([np.full((len(fetus.faces), 1), 3), fetus.faces.numpy()]).ravel()
    mesh = pyvista.PolyData(fetus.vertices.numpy()[:, ::-1].copy(), faces)
    a, b, c = AXES_MM[FETUS]
    # Thomsen's formula, within 1.1 %.
    area_mm2 = 4 * math.pi * (((a * b) ** 1.6 + (a * c) ** 1.6 + (b * c) ** 1.6) / 3) ** (1 / 1.6)
    assert mesh.n_open_edges == 0
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * a * b * c, rel=0.08)
    assert measured(result)["fetus_surface_area"].value == pytest.approx(area_mm2 / 100, rel=0.06)
    corners = fetus.vertices.numpy()[fetus.faces.numpy()][..., ::-1]
    signed = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert signed > 0, "normals point inwards"


@pytest.mark.parametrize("axes", [(0, 2, 1), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_turned_and_mirrored_volumes_give_turned_and_mirrored_labels(answer, axes, flips):
    grey, _ = scene()
    turned = np.flip(grey.transpose(axes), flips)
    spacing = tuple(SPACING[a] for a in axes)
    result = pipeline.run(task(), scan_of(turned, spacing))
    expected = np.flip(labels_in(answer[0]).data[0].numpy().transpose(axes), flips)
    found = labels_in(result).data[0].numpy()
    assert all(dice(found == k, expected == k) > 0.95 for k in (PLACENTA, SAC, FETUS))


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(0,), (1, 2)])
def test_a_network_that_tells_sides_apart_sees_a_turned_volume_from_the_same_side(axes, flips):
    grey, _ = scene((60, 72, 66), shift_mm=(3.0, -5.0, 4.0))
    one = labels_in(pipeline.run(task(read_grey_lopsided), scan_of(grey))).data[0].numpy()
    plain = labels_in(pipeline.run(task(), scan_of(grey))).data[0].numpy()
    assert (one != plain).mean() > 0.01, "the network has to prefer a side"
    turned = np.flip(grey.transpose(axes), flips)
    other = labels_in(pipeline.run(task(read_grey_lopsided), scan_of(turned))).data[0].numpy()
    assert (other == np.flip(one.transpose(axes), flips)).mean() > 0.999


def test_volumes_follow_the_spacing_and_an_impossible_size_is_flagged(answer):
    grey, _ = scene()
    result = pipeline.run(task(), scan_of(grey, tuple(3 * s for s in SPACING)))
    once, thrice = (measured(r)["fetus_volume"].value for r in (answer[0], result))
    assert thrice == pytest.approx(27 * once, rel=0.03)
    assert "implausible_size" in codes(result)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_grey_levels_have_no_scale(answer, dtype):
    grey, _ = scene()
    other = (grey / 255).astype(np.float32) if dtype is np.float32 else grey.astype(np.int16) * 40 - 3000
    found = labels_in(pipeline.run(task(), scan_of(other))).data
    expected = labels_in(answer[0]).data
    assert all(dice(found[0] == k, expected[0] == k) > 0.95 for k in (PLACENTA, SAC, FETUS))


def test_without_a_scale_there_are_labels_and_no_numbers():
    grey, labels = scene()
    result = pipeline.run(task(), scan_of(grey, None))
    assert "not_measured" in codes(result)
    assert not result.measurements
    assert dice(labels_in(result).data[0] == SAC, labels == SAC) > 0.9


def test_nothing_found_reads_not_detected():
    grey = np.random.default_rng(0).integers(85, 95, (48, 48, 48)).astype(np.uint8)
    chances = torch.zeros(4, 48, 48, 48)
    chances[0] = 1
    one = dataclasses.replace(
        task(), network=Network(lambda v: (chances[None] * 9, v[:, :, 0, 0, 0]), "torch", "cpu", "f32", 0.0),
        settings=Settings(size=48),
    )  # fmt: skip
    result = pipeline.run(one, scan_of(grey))
    assert {m.value for m in result.measurements} == {None}
    assert {m.note for m in result.measurements} == {"not detected"}
    assert [type(f) for f in result.findings] == [Labels]
    assert "not_detected" in codes(result)
    assert "not_detected" not in codes(pipeline.run(task(), scan_of(scene()[0])))


def test_a_sac_at_the_edge_of_the_view_is_flagged_and_nothing_lies_outside():
    grey, _ = scene(shift_mm=(26.0, 0.0, 0.0))
    result = pipeline.run(task(), scan_of(grey))
    assert "cut_by_sector_edge" in codes(result)
    grey, _ = scene()
    grey[:, :, 40:] = 0
    result = pipeline.run(task(), scan_of(grey))
    assert "cut_by_sector_edge" in codes(result)
    assert not labels_in(result).data[0, :, :, 42:].any()


def test_looking_closer_gives_finer_labels_in_the_same_place():
    grey, labels = scene((90, 120, 140))
    scan = scan_of(grey)
    steps = []
    for closer in (False, True):
        one = task(closer=closer)
        prepared = one.preprocess(canonicalise(scan))
        found = one.postprocess(one.infer(prepared), prepared)[0]
        steps.append(found.grid.step[0])
        assert dice(restore(found, scan.grid).data[0] == FETUS, labels == FETUS) > 0.9
    assert steps[1] < 0.7 * steps[0]


def test_a_volume_unlike_the_training_set_is_flagged():
    grey, _ = scene()
    features = torch.tensor([0.35, 0.35, 0.5]) + 0.01 * torch.randn(
        60, 3, generator=torch.Generator().manual_seed(0)
    )
    strict = quality.fit(features[:40] + 9, features[40:] + 9)
    loose = quality.fit(features[:40] * torch.arange(40)[:, None], features[40:] * 99)
    for statistics, flagged in ((strict, True), (loose, False), (None, False)):
        one = dataclasses.replace(task(), statistics=statistics)
        assert ("out_of_distribution" in codes(pipeline.run(one, scan_of(grey)))) is flagged


def certain(labels):
    return F.one_hot(torch.from_numpy(labels).long(), 4).movedim(-1, 0).float()


def test_tidying_names_flecks_and_holes_and_drops_strays():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:16, 2:16, 2:16] = SAC
    labels[5:10, 5:10, 5:10] = FETUS
    labels[7, 7, 7] = SAC  # a stomach
    labels[13, 13, 13] = FETUS  # a fleck in the fluid
    labels[2:16, 2:16, 16:18] = PLACENTA
    labels[18:20, 18:20, 0:2] = FETUS  # outside any sac
    labels[0, 0, 19] = PLACENTA  # away from any sac
    clean = tidy(certain(labels))
    assert clean[7, 7, 7] == FETUS
    assert clean[13, 13, 13] == SAC
    assert not clean[18:].any()
    assert clean[0, 0, 19] == 0
    assert not ((clean > 0) & (labels == 0)).any(), "tissue was invented"
    assert (clean[2:16, 2:16, 16:18] == PLACENTA).all()


def test_a_placenta_without_a_sac_is_none():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:9, 3:9, 3:9] = PLACENTA
    assert not tidy(certain(labels)).any()


def test_chances_follow_the_labels():
    chances = torch.softmax(torch.randn(4, 5, 5, 5, generator=torch.Generator().manual_seed(0)), 0)
    labels = chances.argmax(0).numpy().astype(np.uint8)
    assert torch.equal(chances_of(labels, chances), chances)
    labels[0] = 2
    changed = chances_of(labels, chances)
    assert torch.equal(changed.argmax(0), torch.from_numpy(labels).long())
    assert torch.equal(changed[:, 1:], chances[:, 1:])


def test_a_corrected_map_is_measured_as_painted_and_its_surfaces_are_drawn_anew(answer):
    result, _ = answer
    found = labels_in(result)
    painted = found.data.clone()
    painted[0, :10, :10, :10] = PLACENTA
    painted[painted == FETUS] = SAC
    findings = [dataclasses.replace(f, data=painted) if f is found else f for f in result.findings]
    again = pipeline.remeasure(task(flips=True), result, findings=findings, scan=scan_of(scene()[0]))
    voxel_ml = math.prod(SPACING) / 1000
    numbers = measured(again)
    assert numbers["placenta_volume"].value == pytest.approx(int((painted == PLACENTA).sum()) * voxel_ml)
    assert numbers["placenta_volume"].low is None
    assert numbers["fetus_volume"].note == "not detected"
    assert numbers["fetus_surface_area"].value is None
    assert [f.name for f in again.findings if isinstance(f, Surface)] == ["placenta"]
    # Six faces of the painted cube more, but for what smoothing rounds off.
    growth = numbers["placenta_surface_area"].value - measured(result)["placenta_surface_area"].value
    assert growth == pytest.approx(6.0, abs=1.5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_mesh_drawn_on_a_mirrored_grid_has_its_outside_out(sign):
    grid = Grid((20, 22, 24), SPACING, direction=((sign, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    data = torch.zeros(1, *grid.shape, dtype=torch.uint8)
    data[0, 5:15, 6:16, 7:17] = FETUS
    mesh = surface_of_mask(Labels("structures", data, grid, {FETUS: "fetus"}), FETUS, name="fetus")
    corners = mesh.vertices.double().flip(1)[mesh.faces]  # x, y, z, as meshes are written
    signed = torch.linalg.det(corners).sum() / 6
    assert float(signed) == pytest.approx(1000 * math.prod(SPACING), rel=0.1)
