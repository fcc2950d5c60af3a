"""How ``midsagittal_plane`` learns: a finder of heads and two readers of their pose, on simulated volumes.

One training fits all three networks: the finder sees the whole view in any orientation; the readers a cube
about the head, the coarse one turned by up to 60°, the fine one nearly right, as it is while the plane is
being refined (Li et al., MICCAI 2018: iterative transformation). No reader has to tell a head's pose from any
side: seen from afar, forward and back look alike, and the mean of two opposite answers is none. Geometry is
drawn anew in every epoch, so a few hundred volumes give as many poses as there are steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from models3d.nets.head_pose import PlaneNetwork, frame_of
from models3d.recipes._midsagittal_examples import View, pose_example, view_example, view_of
from models3d.recipes._midsagittal_finding import Sphere, spheres
from models3d.recipes._midsagittal_scores import row, score
from models3d.recipes.working_volume import CHANNELS, grey_levels, native_side, working
from usvol.scan import Scan, Selection
from usvol.training.members import start_from
from usvol.training.recipe import Batch, FitSettings, Recipe, Sample

SELECTION = Selection()
PERHAPS = 0.2  # chance of a head from which a part of a volume looks like one
_APART = 1.4  # radii from a head to what is none
_STORED = (64, 112)  # samples along the longest side of what is cached, and of what the task reads


class Settings(FitSettings):
    """What this recipe adds to every recipe's settings."""

    view: int = Field(48, ge=16, multiple_of=8, description="side of the whole view as the finder sees it")
    sides: tuple[int, int] = Field(
        (24, 40), description="sides of the coarse and the fine reader's cube; multiples of 8"
    )
    widths: tuple[int, int, int] = Field((20, 40, 80), description="maps at 1/2, 1/4 and 1/8")
    patches: int = Field(4, ge=1, description="cubes of either kind per volume and step")
    picture: float = Field(0.4, ge=0, le=1, description="how often grey levels are varied")
    alike: bool = Field(
        False, description="learn what is no head from what the finder of `init` takes for one as well"
    )

    @model_validator(mode="after")
    def _from_something(self) -> Settings:
        if self.alike and self.init is None:
            raise ValueError("alike: the weights whose finder sees heads are to be named as init")
        return self


def stored(scan: Scan) -> Scan:
    """Make a canonical volume isotropic, about as fine as it is: 64-112 samples along its longest side."""
    return working(scan, side=native_side(scan, least=_STORED[0], most=_STORED[1]))


def prepare(scan: Scan) -> dict[str, Tensor]:
    """Keep a canonical volume as the task reads it: ``grey`` and ``mask`` ``z y x`` (uint8), ``affine``."""
    small = stored(scan)
    grey, mask = grey_levels(small)
    return {
        "grey": (grey * 255).round().to(torch.uint8).contiguous(),
        "mask": mask.to(torch.uint8).contiguous(),
        "affine": torch.from_numpy(small.grid.affine),
    }


class Views(Dataset[Batch]):
    """Training examples: a turned view of every volume, cubes turned at random, cubes turned nearly right."""

    def __init__(self, samples: Sequence[Sample], settings: Settings) -> None:
        self.views = [view_of(sample) for sample in samples]
        self.settings = settings
        self.finder = _earlier(settings).finder if settings.alike else None
        self.alike: dict[int, list[tuple[Tensor, float]]] = {}

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Batch:
        settings = self.settings
        view = self.views[index]
        whole, inside = view_example(view, side=settings.view, picture=settings.picture)
        batch = {"view": whole, "inside": inside}
        for name, near, side in (("coarse", False, settings.sides[0]), ("fine", True, settings.sides[1])):
            drawn = [
                pose_example(view, side=side, picture=settings.picture, near=near, alike=self._alike(index))
                for _ in range(settings.patches)
            ]
            batch[name] = torch.stack([cube for cube, _ in drawn])
            batch[f"{name}_pose"] = torch.stack([pose for _, pose in drawn])
        return batch

    @torch.no_grad()
    def _alike(self, index: int) -> list[tuple[Tensor, float]]:
        """Return where the finder sees a head and none is, told once per volume."""
        if self.finder is None:
            return []
        if index not in self.alike:
            view = self.views[index]
            found = spheres(view, self.finder, side=self.settings.view, least=PERHAPS)
            self.alike[index] = [(s.centre, s.radius) for s in found if not _on_head(view, s)]
        return self.alike[index]


def _on_head(view: View, sphere: Sphere) -> bool:
    if view.centre is None or view.radii is None:
        return False
    return float((sphere.centre - view.centre).norm()) < _APART * float(view.radii.mean())


def _earlier(settings: Settings) -> PlaneNetwork:
    """Return the networks of ``init``, as they are there."""
    assert settings.init is not None
    network = new_network(settings)
    start_from(Path(settings.init), network)
    return network.eval()


def loss(network: PlaneNetwork, batch: Batch, *, settings: Settings) -> Tensor:
    """Return the sum of the finder's and both readers' losses."""
    del settings
    total = finder_loss(network.finder(batch["view"]), batch["inside"])
    for name, reader in (("coarse", network.coarse), ("fine", network.fine)):
        numbers = reader(batch[name].flatten(0, 1))
        total = total + pose_loss(numbers, batch[f"{name}_pose"].flatten(0, 1))
    return total


def finder_loss(logits: Tensor, inside: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice loss (pooled over the batch) of ``b z y x``."""
    logits = logits.float()
    chance = torch.sigmoid(logits)
    dice = (2 * (chance * inside).sum() + 1) / (chance.sum() + inside.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, inside) + 0.5 * (1 - dice)


def pose_loss(numbers: Tensor, truth: Tensor) -> Tensor:
    """Return the loss of ``b 14`` numbers: angles, place and size where they can be read; both judgements.

    Directions lose 1 - cos of their angle, and the left axis, which is the plane's normal, twice that.
    """
    numbers = numbers.float()
    there, readable = truth[:, 12], truth[:, 14]
    found, true = frame_of(numbers), frame_of(truth)
    off = 1 - (found * true).sum(1)
    turning = (off * torch.tensor([1.0, 2.0, 1.0], device=off.device)).sum(1)
    # The raw vectors are held near unit length, so that making them orthonormal stays well conditioned.
    lengths = (numbers[:, 0:3].norm(dim=1) - 1).square() + (numbers[:, 3:6].norm(dim=1) - 1).square()
    place = F.smooth_l1_loss(numbers[:, 6:9], truth[:, 6:9], beta=0.05, reduction="none").sum(1)
    size = F.smooth_l1_loss(numbers[:, 9:12], truth[:, 9:12], beta=0.05, reduction="none").sum(1)
    pose = turning + 0.05 * lengths + 2 * place + size
    present = F.binary_cross_entropy_with_logits(numbers[:, 12], there)
    aligned = F.binary_cross_entropy_with_logits(numbers[:, 13], truth[:, 13], reduction="none")
    read = (readable * pose).sum() / readable.sum().clamp_min(1)
    return read + (there * aligned).sum() / there.sum().clamp_min(1) + 0.5 * present


def new_network(settings: Settings) -> PlaneNetwork:
    """Return the untrained networks."""
    return PlaneNetwork(CHANNELS, sides=settings.sides, widths=settings.widths)


TRAINING = Recipe(
    Settings=Settings,
    prepare=prepare,
    selection=SELECTION,
    examples=Views,
    network=new_network,
    loss=loss,
    stratum=lambda _: 0.0,
    row=row,
    metrics=score,
    datasets=("phantom_files",),
    phantom="fetal_head",
    phantom_settings={"absent": 0.3},
    phantoms_suffice=True,
)
