from __future__ import annotations

import numpy as np
import pytest
import torch

from models3d.phantoms._aortic_geometry import drawn_root, mesh_points
from models3d.phantoms._shapes import random_rotation
from models3d.tasks import _aortic_mesh as mesh
from models3d.tasks import _aortic_shape as shape
from models3d.tasks._aortic_measures import measures


def root(seed=0, **options):
    return drawn_root(np.random.default_rng(seed), **{"cusps": 3, "calcified": False, **options})


def tube(radius=12.0, height=20.0):
    """A straight cylinder with flat cusps: everything about it is known."""
    angle = np.arange(mesh.COLUMNS) / mesh.COLUMNS * 2 * np.pi
    ring = np.stack([0 * angle, radius * np.cos(angle), radius * np.sin(angle)], -1)
    levels = np.linspace(0, height, mesh.ROWS)
    wall = np.concatenate([ring + np.array([level, 0, 0]) for level in levels])
    caps = np.array([[0.0, 0, 0], [height, 0, 0]])
    sheet = np.stack(
        np.meshgrid(np.linspace(2, 11, mesh.CUSP_ROWS), np.linspace(-3, 3, mesh.CUSP_COLUMNS), indexing="ij")
    )
    cusp = np.stack([sheet[0].ravel(), 5 + 0 * sheet[0].ravel(), sheet[1].ravel()], -1)
    return np.concatenate([wall, caps, cusp, cusp, cusp])


def test_topology_is_closed_and_labelled():
    assert len(mesh.VERTEX_LABELS) == mesh.N_VERTICES == len(tube()) == 860
    assert set(mesh.VERTEX_LABELS) == set(mesh.LABEL_NAMES)
    edges = np.concatenate([mesh.ROOT_FACES[:, pair] for pair in ((0, 1), (1, 2), (2, 0))])
    seen = {tuple(edge) for edge in edges}
    # Closed and of one orientation: every edge once each way.
    assert len(seen) == len(edges)
    assert all((b, a) in seen for a, b in seen)
    assert mesh.CUSP_FACES.min() == mesh.cusp_start(0) and mesh.CUSP_FACES.max() == mesh.N_VERTICES - 1


def test_a_cylinder_measures_what_it_is():
    found = measures(tube())
    circle = 48 / 2 * np.sin(2 * np.pi / 48) * 12**2  # area of its polygon of 48 sides
    assert found["annulus_area_mm2"] == pytest.approx(circle)
    assert found["root_volume_ml"] == pytest.approx(circle * 20 / 1000)
    assert found["annulus_perimeter_mm"] == pytest.approx(48 * 24 * np.sin(np.pi / 48))
    for name in ("annulus_diameter_min_mm", "annulus_diameter_max_mm", "sinus_diameter_mm"):
        assert found[name] == pytest.approx(24, abs=0.06)
    assert found["sinotubular_diameter_mm"] == pytest.approx(24, abs=0.1)
    assert found["cusp_height_left_mm"] == pytest.approx(9)
    assert found["root_height_mm"] == pytest.approx(20)


def test_an_ellipse_has_two_diameters_wherever_it_lies():
    rng = np.random.default_rng(0)
    stretched = tube() * (1, 1.2, 0.9)
    turned = stretched @ random_rotation(rng).T + rng.normal(0, 30, 3)
    for vertices in (stretched, turned):
        found = measures(vertices)
        assert found["annulus_diameter_max_mm"] == pytest.approx(28.8, abs=0.06)
        assert found["annulus_diameter_min_mm"] == pytest.approx(21.6, abs=0.06)
        assert found["annulus_diameter_area_mm"] == pytest.approx(24 * np.sqrt(1.08), abs=0.1)
    assert measures(2 * turned)["root_volume_ml"] == pytest.approx(8 * measures(turned)["root_volume_ml"])


def test_box_and_frame_follow_the_root():
    rng = np.random.default_rng(1)
    local = mesh_points(root(), opened=0.0)
    centre, size, axes = mesh.box_of(local)
    np.testing.assert_allclose(axes, np.eye(3), atol=0.06)
    turn, move = random_rotation(rng), rng.normal(0, 30, 3)
    moved_centre, moved_size, moved_axes = mesh.box_of(local @ turn.T + move)
    np.testing.assert_allclose(moved_axes, turn @ axes, atol=1e-9)
    np.testing.assert_allclose(moved_size, size, atol=1e-9)
    np.testing.assert_allclose(moved_centre, turn @ centre + move, atol=1e-9)
    corners = mesh.corners(moved_centre, moved_size, rotation=moved_axes)
    np.testing.assert_allclose(np.ptp(corners @ moved_axes, axis=0), size, atol=1e-9)


def test_normals_point_out_of_the_wall_and_towards_the_aorta():
    vertices = mesh_points(root(), opened=0.0)
    normals = mesh.normals(vertices)
    rings = mesh.wall_rings(vertices)
    outward = (mesh.wall_rings(normals) * (rings - rings.mean(1, keepdims=True))).sum(-1)
    assert (outward > 0).mean() > 0.99
    assert normals[mesh.CAPS[0], 0] < -0.9 and normals[mesh.CAPS[1], 0] > 0.9
    for cusp in range(3):
        assert mesh.cusp_sheet(normals, cusp)[2:4, 5:8, 0].mean() > 0.3


def test_distance_of_meshes():
    vertices = tube()
    assert mesh.mesh_distance_mm(vertices, vertices) == pytest.approx(0, abs=1e-9)
    inner = mesh.surface_distance_mm(
        np.array([[10.0, 0.0, 0.0], [10.0, 0.0, 3.0]]), vertices[:624], faces=mesh.ROOT_FACES[: 12 * 48 * 2]
    )
    np.testing.assert_allclose(inner, (12, 9), atol=0.05)
    wider = tube(13.0)
    assert mesh.mesh_distance_mm(vertices, wider, faces=mesh.ROOT_FACES[: 12 * 48 * 2]) == pytest.approx(
        1, abs=0.02
    )


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    meshes = []
    for seed in range(60):
        local = mesh_points(root(seed, cusps=None), opened=float(rng.random() < 0.5))
        meshes.append(local @ random_rotation(rng).T + rng.normal(0, 20, 3))
    return shape.fit(torch.from_numpy(np.stack(meshes)), modes=20)


def test_shape_model_remakes_unseen_roots(model):
    rng = np.random.default_rng(5)
    vertices = mesh_points(root(1000), opened=0.0) @ random_rotation(rng).T + 10
    remade = shape.project(model, torch.from_numpy(vertices)).double().numpy()
    plain = shape.place(model, **boxed(vertices)).double().numpy()
    assert mesh.mesh_distance_mm(vertices, remade) < 0.35
    assert mesh.mesh_distance_mm(vertices, remade) < 0.5 * mesh.mesh_distance_mm(vertices, plain)
    np.testing.assert_allclose(mesh.box_of(plain)[1], mesh.box_of(vertices)[1], rtol=0.06)


def boxed(vertices):
    names = ("centre", "size", "rotation")
    return {name: torch.from_numpy(v) for name, v in zip(names, mesh.box_of(vertices), strict=True)}


def test_projection_repairs_what_no_root_looks_like(model):
    vertices = mesh_points(root(1001), opened=0.0)
    broken = vertices.copy()
    broken[100:110] += 8
    weights = torch.ones(mesh.N_VERTICES)
    weights[100:110] = 0
    repaired = shape.project(model, torch.from_numpy(broken), weights=weights).double().numpy()
    assert np.linalg.norm(repaired - vertices, axis=1)[100:110].mean() < 1.5
    tight = shape.project(model, torch.from_numpy(broken), limit=0.0).double().numpy()
    scale, turn, _ = shape.similarity(torch.from_numpy(tight), model.mean.double())
    assert torch.allclose(turn @ turn.T, torch.eye(3, dtype=turn.dtype), atol=1e-5) and scale > 0


def test_shape_model_is_kept_as_tensors(model):
    back = shape.from_tensors(shape.tensors(model))
    assert torch.equal(back.modes, model.modes) and torch.equal(back.mean, model.mean)
    with pytest.raises(KeyError):
        shape.from_tensors({})
    with pytest.raises(ValueError, match="860"):
        shape.fit(torch.zeros(3, 10, 3))
