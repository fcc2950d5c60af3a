from __future__ import annotations

import pytest
import torch

from usvol.errors import ConfigError
from usvol.training.members import join_members, member_state, start_from


def states(count):
    """Members with one shared tensor, one of their own, and one that two of them happen to share."""
    return [
        {
            "encoder.weight": torch.arange(6.0).reshape(2, 3),
            "head.weight": torch.full((2,), float(k)),
            "head.bias": torch.tensor([float(min(k, 1))]),
            "batches": torch.tensor(7),
        }
        for k in range(count)
    ]


def test_join_and_split_give_back_every_member():
    members = states(12)
    joined = join_members(members)
    for k, member in enumerate(members):
        again = member_state(joined, k)
        assert set(again) == set(member)
        assert all(torch.equal(again[name], member[name]) for name in member)
        assert all(again[name].dtype == member[name].dtype for name in member)


def test_what_all_members_share_is_stored_once():
    joined = join_members(states(3))
    assert {name for name in joined if "encoder" in name or "batches" in name} == {
        "shared.encoder.weight",
        "shared.batches",
    }
    assert sum("head.bias" in name for name in joined) == 3


def test_a_single_member_is_its_own():
    (member,) = states(1)
    joined = join_members([member])
    assert all(name.startswith("member_0.") for name in joined)
    assert set(member_state(joined, 0)) == set(member)


def test_another_member_lends_nothing_but_what_is_shared():
    assert set(member_state(join_members(states(2)), 5)) == {"encoder.weight", "batches"}


def test_nothing_starts_from_half_a_file(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(ConfigError, match=r"cut\.safetensors is no whole safetensors file"):
        start_from(path, torch.nn.Linear(2, 2))
