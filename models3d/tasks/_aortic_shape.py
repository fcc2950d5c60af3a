"""Statistical shape of the aortic root's mesh: principal components of aligned meshes.

Cootes et al., Active shape models, Comput. Vis. Image Underst. 61(1), 1995: meshes of one topology are
aligned by similarities (Umeyama, IEEE TPAMI 13(4), 1991), and a new mesh is held to what few components
can make of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models3d.tasks._aortic_mesh import N_VERTICES, N_WALL, box_of

_ROUNDS = 4  # of alignment to the mean of the aligned
_FITS = 3  # of pose and shape in turn, when a mesh is projected
_PREFIX = "shape."


@dataclass(frozen=True, slots=True, eq=False)
class ShapeModel:
    """A mean mesh and how it varies.

    Attributes:
        mean: (860, 3) in mm, along the root's axes about the centre of its box.
        modes: (k, 860, 3) of unit length; ``deviations`` (k,) in mm along each.
    """

    mean: Tensor
    modes: Tensor
    deviations: Tensor

    def __post_init__(self) -> None:
        count = self.modes.shape[0]
        wanted = ((N_VERTICES, 3), (count, N_VERTICES, 3), (count,))
        got = (tuple(self.mean.shape), tuple(self.modes.shape), tuple(self.deviations.shape))
        if got != wanted:
            raise ValueError(f"a shape model needs tensors of {wanted}, got {got}")


def fit(meshes: Tensor, *, modes: int = 24) -> ShapeModel:
    """Fit a model to meshes (n, 860, 3) in mm, in any pose; at most ``modes`` and n - 1 components."""
    if meshes.ndim != 3 or tuple(meshes.shape[1:]) != (N_VERTICES, 3) or len(meshes) < 2:
        raise ValueError(f"at least two meshes (n, {N_VERTICES}, 3) are needed, got {tuple(meshes.shape)}")
    meshes = meshes.double()
    mean = meshes[0] - meshes[0].mean(0)
    size = _scatter(meshes).mean()
    for _ in range(_ROUNDS):
        aligned = torch.stack([_moved(mesh, similarity(mesh, mean)) for mesh in meshes])
        mean = aligned.mean(0)
        mean = (mean - mean.mean(0)) * (size / _scatter(mean))
    mean = _upright(mean)
    aligned = torch.stack([_moved(mesh, similarity(mesh, mean)) for mesh in meshes])
    away = (aligned - mean).flatten(1)
    _, values, vectors = torch.linalg.svd(away - away.mean(0), full_matrices=False)
    kept = min(modes, len(meshes) - 1)
    deviations = values[:kept] / (len(meshes) - 1) ** 0.5
    shaped = vectors[:kept].reshape(kept, N_VERTICES, 3)
    return ShapeModel(mean.float(), shaped.float(), deviations.float())


def place(model: ShapeModel, *, centre: Tensor, size: Tensor, rotation: Tensor) -> Tensor:
    """Put the mean into a box: stretched along each axis to its size, turned and moved; (860, 3) float32."""
    wall = model.mean[:N_WALL]
    low, high = wall.amin(0), wall.amax(0)
    unit = (model.mean - (low + high) / 2) / (high - low)
    turned = (unit * torch.as_tensor(size, dtype=torch.float32)) @ torch.as_tensor(rotation).float().T
    return turned + torch.as_tensor(centre, dtype=torch.float32)


def project(model: ShapeModel, mesh: Tensor, *, limit: float = 3.0, weights: Tensor | None = None) -> Tensor:
    """Replace a mesh (860, 3) by the nearest the model can make, each mode within ``limit`` deviations.

    ``weights`` (860,) says how far each vertex is to be trusted; 0 leaves it to the model. Float32 (860, 3).
    """
    weights = torch.ones(N_VERTICES) if weights is None else weights.float().clamp(min=0)
    mesh = mesh.float()
    shape = model.mean
    pose = similarity(mesh, shape, weights=weights)
    for _ in range(_FITS):
        shape = _shaped(model, _moved(mesh, pose) - model.mean, limit=limit, weights=weights)
        pose = similarity(mesh, shape, weights=weights)
    return _moved_back(shape, pose)


def tensors(model: ShapeModel) -> dict[str, Tensor]:
    """Name the tensors of a model, for a weights file."""
    return {
        f"{_PREFIX}mean": model.mean,
        f"{_PREFIX}modes": model.modes,
        f"{_PREFIX}deviations": model.deviations,
    }


def from_tensors(kept: Mapping[str, Tensor]) -> ShapeModel:
    """Read a model back from what ``tensors`` named; KeyError names the tensor that is missing."""
    mean, modes, deviations = (kept[f"{_PREFIX}{name}"].float() for name in ("mean", "modes", "deviations"))
    return ShapeModel(mean, modes, deviations)


Similarity = tuple[Tensor, Tensor, Tensor]
"""Scale (), rotation (3, 3) and shift (3,): x -> scale rotation x + shift."""


def similarity(source: Tensor, target: Tensor, *, weights: Tensor | None = None) -> Similarity:
    """Fit the similarity without reflection that takes ``source`` nearest to ``target`` (both (n, 3))."""
    share = torch.ones(len(source), dtype=source.dtype) if weights is None else weights.to(source.dtype)
    share = (share / share.sum().clamp(min=1e-9))[:, None]
    centre, goal = (share * source).sum(0), (share * target).sum(0)
    left, right = source - centre, target - goal
    u, values, vt = torch.linalg.svd((share * right).T @ left)
    flip = torch.ones(3, dtype=source.dtype)
    flip[2] = torch.sign(torch.det(u) * torch.det(vt))
    rotation = u @ torch.diag(flip) @ vt
    scale = (values * flip).sum() / (share * left.square()).sum().clamp(min=1e-9)
    return scale, rotation, goal - scale * rotation @ centre


def _moved(points: Tensor, pose: Similarity) -> Tensor:
    scale, rotation, shift = pose
    return scale * points @ rotation.T + shift


def _moved_back(points: Tensor, pose: Similarity) -> Tensor:
    scale, rotation, shift = pose
    return (points - shift) @ rotation / scale


def _shaped(model: ShapeModel, away: Tensor, *, limit: float, weights: Tensor) -> Tensor:
    """The model's shape nearest to the mean plus ``away``: weighted least squares with a prior, clipped."""
    flat = model.modes.flatten(1)
    heavy = weights.repeat_interleave(3)
    held = limit * model.deviations
    # A prior of one thousandth of the modes' own spread keeps unseen ones at the mean.
    prior = torch.diag(1e-3 * heavy.mean() / model.deviations.clamp(min=1e-6).square())
    system = (flat * heavy) @ flat.T + prior
    coefficients = torch.linalg.solve(system, (flat * heavy) @ away.flatten())
    coefficients = torch.minimum(torch.maximum(coefficients, -held), held)
    return model.mean + torch.einsum("k,knd->nd", coefficients, model.modes)


def _upright(mean: Tensor) -> Tensor:
    """Turn a mesh into its own root's axes, the centre of its box at 0."""
    centre, _, rotation = box_of(mean.numpy())
    return (mean - torch.from_numpy(centre)) @ torch.from_numpy(rotation)


def _scatter(meshes: Tensor) -> Tensor:
    """Root mean square distance of vertices from their centre: (...)."""
    return (meshes - meshes.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()
