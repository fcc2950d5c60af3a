from __future__ import annotations

import pytest
import torch

from models3d.nets.needle_fcn import LightUNet, TwoLooks
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


def test_both_looks_answer_at_their_own_size():
    network = TwoLooks(LightUNet(2, widths=(4, 8)), LightUNet(2, widths=(4, 8))).eval()
    views, tubes = network(torch.rand(1, 2, 8, 8, 8), torch.rand(2, 2, 16, 4, 4))
    assert views.shape == (1, 8, 8, 8) and tubes.shape == (2, 16, 4, 4)
