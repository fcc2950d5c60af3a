from __future__ import annotations

import pytest
import torch

from models3d.nets.needle_fcn import SLICE_ANSWERS, TUBE_ANSWERS, LightUNet, TubeReader
from models3d.nets.triplanar import TriPlanar


@pytest.mark.parametrize("network", [LightUNet(2, widths=(4, 8, 8)), TriPlanar(2, maps=(2, 2, 2, 2))])
def test_one_logit_per_voxel(network):
    assert network.eval()(torch.rand(2, 2, 16, 8, 24)).shape == (2, 16, 8, 24)


def test_triplanar_sees_21_samples_of_three_planes_and_nothing_else():
    torch.manual_seed(0)
    network = TriPlanar(1, maps=(2, 2, 2, 2)).eval()
    volume = torch.rand(1, 1, 33, 33, 33, requires_grad=True)
    network(volume)[0, 16, 16, 16].backward()
    assert volume.grad is not None
    z, y, x = (volume.grad[0, 0] != 0).nonzero().T
    assert int(z.min()) >= 6 and int(z.max()) <= 26
    assert bool(((z == 16) | (y == 16) | (x == 16)).all()), "only slices through the voxel"
    assert len(z) > 300


def test_a_tube_is_answered_by_slice_and_as_a_whole():
    reader = TubeReader(2, across=8, widths=(2, 4, 4), code=6).eval()
    slices, whole = reader(torch.rand(2, 2, 16, 8, 8))
    assert slices.shape == (2, SLICE_ANSWERS, 16) and whole.shape == (2, TUBE_ANSWERS)


def test_a_slice_is_read_in_the_light_of_slices_far_from_it():
    torch.manual_seed(0)
    reader = TubeReader(1, across=8, widths=(2, 4, 4), code=6).eval()
    tube = torch.rand(1, 1, 160, 8, 8, requires_grad=True)
    reader(tube)[0][0, 3, 80].backward()
    assert tube.grad is not None
    touched = (tube.grad[0, 0] != 0).flatten(1).any(1).nonzero()
    assert int(touched.min()) < 30 and int(touched.max()) > 130
