"""The parts of the task that need no weights: symmetry, gathering of answers, findings, measurements."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from models3d.recipes._midsagittal_examples import View
from models3d.recipes._midsagittal_finding import Sphere
from models3d.recipes.midsagittal_plane import Settings
from models3d.tasks import _midsagittal_search as search
from models3d.tasks import midsagittal_plane as module
from models3d.tasks._midsagittal_search import Pose, distinct, turn_deg
from models3d.tasks._midsagittal_symmetry import searched, similarity
from models3d.tasks._orientations import sixty_turns
from usvol.errors import UncalibratedError
from usvol.result import Box, Plane, Scores
from usvol.scan import Frame, Grid, Scan, Sector

TURN = Rotation.from_euler("zyx", (35, -20, 60), degrees=True).as_matrix()
CENTRE, RADII = np.array([30.0, 26.0, 34.0]), np.array([17.0, 13.0, 14.0])


def axes(turn=TURN) -> torch.Tensor:
    forward, up = turn[:, 0], turn[:, 1]
    return torch.from_numpy(np.stack([forward, np.cross(forward, up), up], 1)).float()


def symmetric_view() -> View:
    """Blobs in mirrored pairs within an ellipsoid, in no other way alike."""
    frame = axes().numpy()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (60, 56, 64)], indexing="ij"), -1)
    local = (index - CENTRE) @ frame / RADII
    grey = 0.2 * (np.square(local).sum(-1) < 1)
    rng = np.random.default_rng(4)
    for place in rng.uniform(-0.6, 0.6, (9, 3)):
        for sign in (1, -1):
            grey += 0.5 * np.exp(-np.square(local - place * (1, sign, 1)).sum(-1) / 0.05)
    grey += rng.normal(0, 0.02, grey.shape)
    tensor = torch.from_numpy(grey).float().clamp(0, 1)
    return View(tensor, torch.ones(tensor.shape, dtype=torch.bool))


def pose(frame=None, **given) -> Pose:
    values = {"present": 0.9} | given
    return Pose(
        torch.from_numpy(CENTRE).float(),
        torch.from_numpy(RADII).float(),
        axes() if frame is None else frame,
        **values,
    )


def test_similarity_is_high_across_the_midline_and_low_across_another_plane():
    view = symmetric_view()
    true = similarity(view, centre=pose().centre, radii=pose().radii, frame=axes())
    other = axes()[:, [1, 2, 0]]
    wrong = similarity(view, centre=pose().centre, radii=pose().radii[[1, 2, 0]], frame=other)
    assert true > 0.8
    assert wrong < true - 0.2


def test_the_search_for_symmetry_finds_the_plane():
    point, normal, value = searched(symmetric_view(), centre=pose().centre + 1.5, radius=15.0)
    assert abs(float(normal @ axes()[:, 1])) > math.cos(math.radians(8))
    assert abs(float((point - pose().centre) @ axes()[:, 1])) < 1.5
    assert value > 0.7


@pytest.mark.parametrize(("sure", "refinements"), [(3, 16), (50, 60)])
def test_where_no_plane_is_sure_every_orientation_is_refined(monkeypatch, sure, refinements):
    """One of sixty poses is right: among the sixteen that are refined at first, or not."""
    tried = [pose(turn, aligned=0.5 if n == sure else 0.1) for n, turn in enumerate(sixty_turns())]
    seen = []

    def refined(view, readers, *, pose, steps, near):
        seen.append(near)
        return dataclasses.replace(pose, aligned=2 * pose.aligned) if near else pose

    monkeypatch.setattr(module, "scanned", lambda *given, **named: tried)
    monkeypatch.setattr(module, "refined", refined)
    task = module.MidsagittalPlane(readers=None, config=module.Config())  # type: ignore[arg-type]
    found = task._pose(symmetric_view(), pose().centre, radius=15.0)
    assert torch.equal(found.frame, tried[sure].frame)
    assert found.aligned == 1.0
    assert seen.count(True) == seen.count(False) == refinements


def test_a_faint_head_is_looked_at_where_there_is_no_other(monkeypatch):
    faint = Sphere(pose().centre, 15.0, 0.3)
    asked = []

    def spheres(view, finder, *, side, least):
        asked.append(least)
        return [faint] if least < 0.3 else []

    monkeypatch.setattr(search, "spheres", spheres)
    readers = search.Readers(*[None] * 3, Settings())  # type: ignore[arg-type]
    assert search.found_sphere(symmetric_view(), readers) is faint
    assert asked == [0.5, 0.2]


@pytest.mark.parametrize(("seen_in", "looks"), [(1, 1), (2, 2), (3, 2)])
def test_a_head_not_seen_beside_black_is_looked_for_in_the_picture_alone(monkeypatch, seen_in, looks):
    data = torch.zeros(1, 1, 40, 40, 40)
    data[..., 8:32, 8:32, 8:32] = torch.linspace(90, 200, 24)
    sector = Sector(torch.zeros(40, 40, 40, dtype=torch.bool), None, "unknown")
    sector.mask[4:36, 4:36, 4:36] = True
    scan = Scan(data, Grid((40, 40, 40), (1.0, 1.0, 1.0)), sector=sector)
    views = []

    def found(view, readers):
        views.append(view)
        return Sphere(torch.full((3,), 20.0), 8.0, 0.9) if len(views) == seen_in else None

    monkeypatch.setattr(module, "found_sphere", found)
    task = module.MidsagittalPlane(readers=None, config=module.Config())  # type: ignore[arg-type]
    monkeypatch.setattr(module.MidsagittalPlane, "_pose", lambda *given, **named: pose(aligned=1.0))
    numbers, _, _ = task.infer(scan)
    assert bool(numbers[0] > 0) is (seen_in <= looks)
    assert bool(numbers[4]) is (seen_in == 2)
    assert len(views) == looks
    whole = views[0]
    assert bool(whole.mask[5, 20, 20]) and float(whole.grey[20, 20, 9]) > 0.3, "grey is bright beside black"
    for alone in views[1:]:
        assert not alone.mask[5, 20, 20] and float(alone.grey[20, 20, 9]) < 0.1, "its own black is black"


def test_three_judges_tell_a_head_and_baselines_have_two():
    there = pose(present=0.9, aligned=0.5)
    for method, chance in (("iterative", 0.36), ("one_shot", 0.72)):
        task = module.MidsagittalPlane(readers=None, config=module.Config(method=method))  # type: ignore[arg-type]
        assert task._there(0.64, there) == pytest.approx(chance)


def test_like_answers_count_once_and_the_first_stays():
    def near(seed: int) -> torch.Tensor:
        small = Rotation.from_rotvec(np.random.default_rng(seed).normal(0, 0.04, 3)).as_matrix()
        return torch.from_numpy(small).float() @ axes()

    outlier = torch.from_numpy(Rotation.from_rotvec((0, 2.5, 0)).as_matrix()).float() @ axes()
    poses = [pose(near(0)), pose(near(1)), pose(outlier), pose(near(2))]
    kept = distinct(poses)
    assert len(kept) == 2
    assert kept[0] is poses[0]
    assert kept[1] is poses[2]


def test_no_orientation_is_far_from_the_sixty():
    turns = sixty_turns()
    assert all(float(torch.linalg.det(t)) == pytest.approx(1, abs=1e-5) for t in turns)
    drawn = torch.from_numpy(Rotation.random(300, rng=np.random.default_rng(5)).as_matrix()).float()
    assert max(min(turn_deg(a, b) for b in turns) for a in drawn) < 45


def raw(centre=CENTRE, chance=0.9, share=1.0, aligned=0.98, again=0.0):
    numbers = torch.tensor([chance, 0.7, share, aligned, again])
    return numbers, torch.from_numpy(np.stack([centre, RADII])).float(), axes()


def oblique_grid() -> Grid:
    rows = Rotation.from_euler("zyx", (10, 20, -40), degrees=True).as_matrix().tolist()
    direction = (tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))
    return Grid((60, 56, 64), (1.5, 1.5, 1.5), (-20.0, 5.0, -30.0), direction, Frame.PROBE)


def found(numbers, grid):
    task = module.MidsagittalPlane(readers=None, config=module.Config())  # type: ignore[arg-type]
    scan = Scan(torch.zeros(1, 1, *grid.shape), grid)
    return task, scan, task.postprocess(numbers, scan)


def test_plane_and_box_lie_in_the_world_as_in_the_samples():
    grid = oblique_grid()
    _, _, findings = found(raw(), grid)
    plane = next(f for f in findings if isinstance(f, Plane))
    box = next(f for f in findings if isinstance(f, Box))
    world = np.asarray(grid.direction) @ axes().numpy()
    np.testing.assert_allclose(np.abs(np.asarray(plane.normal) @ world), (0, 1, 0), atol=1e-5)
    np.testing.assert_allclose(plane.up, world[:, 2], atol=1e-5)
    # Whatever way the samples run, left is forward × up in the world.
    np.testing.assert_allclose(plane.normal, np.cross(world[:, 0], world[:, 2]), atol=1e-5)
    np.testing.assert_allclose(plane.point, grid.to_world(CENTRE), atol=1e-4)
    np.testing.assert_allclose(box.size, 2 * 1.5 * RADII, rtol=1e-5)
    assert plane.confidence == pytest.approx(0.7)


def test_diameters_and_angles_come_from_the_findings():
    grid = oblique_grid()
    task, scan, findings = found(raw(), grid)
    numbers = {m.name: m.value for m in task.measure(findings, scan)}
    assert numbers["bpd"] == pytest.approx(39.0, rel=1e-4) and numbers["ofd"] == pytest.approx(51.0, rel=1e-4)
    cosines = [math.cos(math.radians(numbers[f"normal_to_{a}_axis"])) for a in "zyx"]
    np.testing.assert_allclose(cosines, np.abs(axes()[:, 1].numpy()), atol=1e-4)
    by_hand = [dataclasses.replace(f, confidence=None) if isinstance(f, Plane) else f for f in findings]
    (symmetry,) = (m for m in task.measure(tuple(by_hand), scan) if m.name == "symmetry")
    assert symmetry.value is None and "by hand" in symmetry.note
    with pytest.raises(UncalibratedError):
        task.measure(findings, Scan(scan.data, Grid(grid.shape)))


def test_no_head_is_said_and_nothing_is_guessed():
    task, scan, findings = found((torch.zeros(4), torch.zeros(2, 3), torch.zeros(3, 3)), oblique_grid())
    assert [type(f) for f in findings] == [Scores]
    assert findings[0].decision == "none"
    assert all(m.value is None and m.note == "not detected" for m in task.measure(findings, scan))
    flags = task.flags((torch.zeros(4), torch.zeros(2, 3), torch.zeros(3, 3)), scan)
    assert [flag.code for flag in flags] == ["not_detected"]


def test_a_head_that_is_cut_is_flagged_and_not_measured():
    task, scan, findings = found(raw(centre=np.array([3.0, 26.0, 34.0]), share=0.6), oblique_grid())
    numbers = {m.name: m for m in task.measure(findings, scan)}
    assert numbers["bpd"].value is None and "too little" in (numbers["bpd"].note or "")
    assert [f.code for f in task.flags(raw(share=0.6), scan)] == ["cut_by_sector_edge"]


def test_a_plane_that_is_hardly_seen_is_given_and_flagged():
    task, scan, findings = found(raw(aligned=0.9), oblique_grid())
    assert any(isinstance(f, Plane) for f in findings)
    (flag,) = task.flags(raw(aligned=0.9), scan)
    assert flag.code == "uncertain_plane" and "0.90" in flag.message and "Check it" in flag.message
    (flag,) = task.flags(raw(aligned=0.6), scan)
    assert flag.code == "uncertain_plane" and "may be no head" in flag.message
    (flag,) = task.flags(raw(again=1.0), scan)
    assert flag.code == "uncertain_plane" and "may be no head" in flag.message, "seen in the picture alone"
    assert task.flags(raw(), scan) == ()


def test_a_plane_whose_head_lies_outside_still_has_a_point_inside():
    grid = oblique_grid()
    numbers = raw(centre=np.array([-6.0, 26.0, 34.0]), share=0.4)
    _, _, findings = found(numbers, grid)
    plane = next(f for f in findings if isinstance(f, Plane))
    index = grid.to_index(np.asarray(plane.point))
    assert ((index >= -1) & (index <= np.asarray(grid.shape))).all()
    centre = grid.to_world(np.array([-6.0, 26.0, 34.0]))
    assert (np.asarray(plane.point) - centre) @ np.asarray(plane.normal) == pytest.approx(0, abs=1e-3)
    assert not any(isinstance(f, Box) for f in findings)


def test_a_size_that_no_head_has_is_flagged():
    grid = Grid((60, 56, 64), (9.0, 9.0, 9.0))
    task, scan, _ = found(raw(), grid)
    assert [f.code for f in task.flags(raw(), scan)] == ["implausible_size"]
