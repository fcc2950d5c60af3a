from __future__ import annotations

import importlib
import sys

import pytest
import torch
from safetensors import safe_open

from usvol import registry, weights
from usvol.errors import WeightsError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return the weights folder of an importable package ``vault``."""
    folder = tmp_path / "vault" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "vault" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("vault", None)


STATE = {"layer.weight": torch.linspace(-1, 1, 12).reshape(3, 4), "steps": torch.tensor(7)}


def ship(store, *, half: bool = False) -> str:
    sha256 = weights.save(store / "net.safetensors", STATE, metadata={"classes": "a,b"}, half=half)
    weights.write_card(store / "net.md", {"task": "bright", "sha256": sha256}, body="# Net\n\nProse.")
    return sha256


def test_what_is_saved_is_loaded(store):
    sha256 = ship(store)
    loaded = weights.find("vault", "net")
    assert loaded.sha256 == sha256
    assert len(sha256) == 64
    assert loaded.metadata["classes"] == "a,b"
    assert loaded.card == store / "net.md"
    assert set(loaded.state) == set(STATE)
    assert torch.equal(loaded.state["layer.weight"], STATE["layer.weight"])
    assert loaded.state["steps"].dtype == torch.int64


def test_half_precision_is_smaller_and_loads_as_float32(store):
    big = {"w": torch.linspace(-3, 3, 10_000)}
    weights.save(store / "full.safetensors", big, metadata={})
    weights.save(store / "half.safetensors", big, metadata={}, half=True)
    assert (store / "half.safetensors").stat().st_size < 0.55 * (store / "full.safetensors").stat().st_size
    loaded = weights.load_file(store / "half.safetensors").state["w"]
    assert loaded.dtype == torch.float32
    assert torch.allclose(loaded, big["w"], atol=2e-3)
    assert not torch.equal(loaded, big["w"])


def test_half_precision_refuses_what_it_cannot_hold(store):
    with pytest.raises(ValueError, match="too large for float16"):
        weights.save(store / "net.safetensors", {"w": torch.tensor([1e6])}, metadata={}, half=True)
    assert not (store / "net.safetensors").exists()


def test_a_changed_byte_is_refused(store):
    ship(store)
    content = bytearray((store / "net.safetensors").read_bytes())
    content[-1] ^= 1
    (store / "net.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="sha256 differs"):
        weights.load("vault", "net")
    with pytest.raises(WeightsError, match="sha256 differs"):
        weights.load_file(store / "net.safetensors")
    (listed,) = weights.inventory(["vault"])
    assert weights.check(listed) is weights.Check.MISMATCH


@pytest.mark.parametrize(("gone", "cause"), [("net.safetensors", "missing"), ("net.md", "no model card")])
def test_missing_parts_are_named(store, gone, cause):
    ship(store)
    (store / gone).unlink()
    with pytest.raises(WeightsError, match=cause):
        weights.load("vault", "net")


def test_a_card_without_checksum_or_front_matter_is_refused(store):
    ship(store)
    (store / "net.md").write_text("---\ntask: bright\n---\n\nNo checksum.\n")
    with pytest.raises(WeightsError, match="no sha256"):
        weights.load("vault", "net")
    (store / "net.md").write_text("# Only prose\n")
    with pytest.raises(WeightsError, match="begins with YAML"):
        weights.load("vault", "net")
    with pytest.raises(WeightsError, match="must state the sha256"):
        weights.write_card(store / "net.md", {"task": "bright"}, body="")


def test_a_file_of_ones_own_needs_no_card(store):
    sha256 = weights.save(store / "own.safetensors", STATE, metadata={})
    assert weights.load_file(store / "own.safetensors").sha256 == sha256
    assert weights.find("vault", str(store / "own.safetensors")).sha256 == sha256
    (store / "text.safetensors").write_text("not tensors at all")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.load_file(store / "text.safetensors")
    with pytest.raises(WeightsError, match="missing"):
        weights.load_file(store / "none.safetensors")


def test_a_package_that_is_not_there():
    with pytest.raises(WeightsError, match="not installed"):
        weights.load("no_such_package", "net")


def test_cards_survive_the_round_trip(store):
    facts = {"sha256": "ab", "licence": "CC BY-NC 4.0", "metrics": {"kappa": 0.5}, "Größe": "µm"}
    weights.write_card(store / "card.md", facts, body="Text with --- in it.\n\n---\n\nmore")
    read, prose = weights.read_card(store / "card.md")
    assert read == facts
    assert prose.endswith("more\n")


def test_everything_that_ships_is_intact():
    for listed in weights.inventory(registry.packages()):
        assert weights.check(listed) is weights.Check.OK, listed.path


def test_the_same_weights_are_the_same_bytes(tmp_path):
    metadata = {f"key {number}": str(number) for number in range(20)}
    path = tmp_path / "net.safetensors"
    sums = [weights.save(path, STATE, metadata=metadata) for _ in range(8)]
    assert len(set(sums)) == 1
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata() == metadata
        assert torch.equal(handle.get_tensor("layer.weight"), STATE["layer.weight"])


def test_a_text_among_the_cards_hides_no_weights(store, caplog):
    ship(store)
    (store / "NOTES.md").write_text("what we tried")
    assert [listed.name for listed in weights.inventory(["vault"])] == ["net"]
    assert "NOTES" in caplog.text
