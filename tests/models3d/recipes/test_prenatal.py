from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import default_collate

from models3d.recipes import prenatal as recipe
from models3d.recipes.prenatal import (
    NAMES,
    Settings,
    Volumes,
    describe,
    loss,
    new_network,
    overlap_loss,
    prepare,
    prepare_labelled,
    row,
    score,
    segments,
)
from usvol import quality
from usvol.canonical import canonicalise
from usvol.result import Labels, Result
from usvol.scan import Grid, Scan, Source
from usvol.training.cases import Case

SMALL = {"size": 48, "widths": (4, 8, 8), "depth": 1, "code": 8, "hidden": 8, "segment": 9, "segments": 2}
ARCHITECTURES = ("fcn", "fcn_rnn", "deepmedic")
WEIGHTS = torch.ones(4)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pregnancy(shape=(40, 50, 60), *, names=NAMES):
    """A bright fetus in a dark sac beside a grey placenta, in tissue, all boxes; outside the sector 0."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    labels[12:28, 10:18, 20:44] = 1
    labels[12:28, 18:38, 20:44] = 2
    labels[16:24, 24:32, 26:38] = 3
    grey = np.array([120, 170, 20, 220])[labels] + rng.integers(-15, 15, shape)
    grey[:, :, :6] = 0
    scan = Scan(torch.from_numpy(grey.astype(np.uint8))[None, None], Grid(shape, (1.0, 1.0, 1.0)))
    return scan, Labels("truth", torch.from_numpy(labels)[None], scan.grid, names)


def sample(**options):
    scan, labels = pregnancy(**options)
    return {**prepare_labelled(canonicalise(scan), labels), "id": "a"}


def test_prepared_volumes_are_isotropic_and_know_their_sector():
    scan, labels = pregnancy()
    stretched = dataclasses.replace(scan, grid=Grid(scan.grid.shape, (3.0, 1.0, 1.0)))
    kept = prepare_labelled(canonicalise(stretched), dataclasses.replace(labels, grid=stretched.grid))
    assert kept["grey"].shape == kept["labels"].shape == (120, 50, 55)
    assert kept["grey"].dtype == kept["labels"].dtype == torch.uint8
    assert set(kept["labels"].unique().tolist()) == {0, 1, 2, 3}
    assert kept["known"].tolist() == [True] * 3
    means = [float(kept["grey"][kept["labels"] == k].float().mean()) for k in (2, 0, 1, 3)]
    assert means == sorted(means)


def test_an_unlabelled_volume_is_prepared_alike():
    scan, labels = pregnancy()
    bare, labelled = prepare(canonicalise(scan)), prepare_labelled(canonicalise(scan), labels)
    assert torch.equal(bare["grey"], labelled["grey"])
    assert set(bare["labels"].unique().tolist()) <= {0, 255}


def test_examples_are_cubes_with_labels_that_fit_the_picture():
    one = Volumes([sample()], Settings(**SMALL, pose=0.0, picture=0.0))[0]
    assert one["volume"].shape == (3, 48, 48, 48)
    assert one["labels"].shape == (48, 48, 48)
    grey, mask = one["volume"][0], one["volume"][2]
    assert float(grey[one["labels"] == 3].mean()) > 0.8 > 0.2 > float(grey[one["labels"] == 2].mean())
    assert not one["labels"][mask == 0].any()


def test_examples_differ_each_time_and_keep_their_labels_on_the_picture():
    volumes = Volumes([sample()], Settings(**SMALL, picture=0.0))
    first, second = volumes[0], volumes[0]
    assert not torch.equal(first["labels"], second["labels"])
    for one in (first, second):
        level = one["volume"][0]
        assert float(level[one["labels"] == 3].mean()) > float(level[one["labels"] == 2].mean()) + 0.4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_network_learns(architecture):
    settings = Settings(architecture=architecture, **SMALL)
    batch = default_collate([Volumes([sample()], Settings(**SMALL, pose=0.0, picture=0.0))[0]])
    network = new_network(settings).train()
    learning = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(learning, lr=0.01)
    values = []
    for _ in range(8):
        torch.manual_seed(1)  # the same segments, so that only learning changes the loss
        value = loss(network, batch, settings=settings)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)
    assert np.mean(values[-3:]) < np.mean(values[:3])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_every_network_answers_logits_and_features(architecture):
    network = new_network(Settings(architecture=architecture, **SMALL)).eval()
    logits, features = network(torch.rand(1, 3, 48, 48, 48))
    assert logits.shape == (1, 4, 48, 48, 48)
    assert features.ndim == 2


def test_a_trained_fcn_is_where_the_recurrent_stage_looks_for_it():
    fcn, both = (new_network(Settings(architecture=a, **SMALL)) for a in ("fcn", "fcn_rnn"))
    missing, unexpected = both.load_state_dict(fcn.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("reader.") for name in missing)


def test_a_perfect_answer_costs_nothing_and_a_wrong_one_much():
    labels = torch.randint(4, (2, 8, 8, 8))
    perfect = 20.0 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)
    known = torch.ones(2, 3, dtype=torch.bool)
    assert float(overlap_loss(perfect, labels, known=known, weights=WEIGHTS)) < 0.01
    assert float(overlap_loss(perfect.roll(1, 1), labels, known=known, weights=WEIGHTS)) > 5


def test_what_a_data_set_does_not_label_counts_as_background():
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    labels[:, :2] = 2
    logits = 20.0 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)
    logits[:, 1, 3] = 40.0  # a placenta nobody labelled
    unknown = torch.tensor([[False, True, True]])
    assert float(overlap_loss(logits, labels, known=unknown, weights=WEIGHTS)) < 0.4
    assert float(overlap_loss(logits, labels, known=~unknown | unknown, weights=WEIGHTS)) > 2


def test_segments_lie_in_the_volume_with_their_labels_in_the_middle():
    volumes = torch.rand(2, 1, 48, 48, 48)
    labels = (volumes[:, 0] > 0.9).long()
    blocks, inner, owner = segments(volumes, labels, size=9, count=3)
    assert blocks.shape == (6, 1, 57, 57, 57)
    assert owner.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal((blocks[:, 0, 24:-24, 24:-24, 24:-24] > 0.9).long(), inner)


def test_a_size_the_networks_cannot_halve_is_refused():
    with pytest.raises(ValidationError, match="multiple of 24"):
        Settings(size=100)


def test_features_of_training_and_held_out_cases_make_the_gate():
    settings = Settings(**SMALL)
    samples = [sample(shape=(40, 50, 56 + k)) for k in range(4)]
    network = new_network(settings).eval()
    tensors = describe(network, samples[:3], held=samples[3:], settings=settings)
    statistics = quality.from_tensors(tensors)
    assert statistics is not None
    assert statistics.held_out == 1
    assert describe(network, samples, held=[], settings=settings) == {}


def result_of(labels):
    return Result("prenatal", labels.grid, Source(), (labels,), ())


def test_rows_compare_structure_by_structure():
    _, truth = pregnancy()
    shifted = dataclasses.replace(truth, data=truth.data.roll(1, 3))
    perfect = row(result_of(truth), Case("a", "a", Path(), {"labels": truth}))
    other = row(result_of(shifted), Case("a", "a", Path(), {"labels": truth}))
    assert [perfect[f"dice_{n}"] for n in ("placenta", "sac", "fetus")] == [1, 1, 1]
    assert perfect["hd95_mm_fetus"] == perfect["asd_mm_fetus"] == 0
    assert perfect["true_ml_fetus"] == pytest.approx(8 * 8 * 12 / 1000)
    assert other["dice_fetus"] == pytest.approx(11 / 12)
    assert other["hd95_mm_fetus"] == 1


def test_scores_are_means_with_intervals_and_leave_out_what_is_not_labelled():
    _, truth = pregnancy()
    _, partly = pregnancy(names={3: "fetus"})
    rows = [row(result_of(truth), Case(str(i), str(i), Path(), {"labels": t})) for i, t in
            enumerate((truth, truth, partly))]  # fmt: skip
    rows[1] = rows[1] | {"dice_fetus": 0.5, "volume_ml_fetus": rows[1]["true_ml_fetus"] * 0.8}
    estimates = score(rows, ["0", "1", "2"])
    assert estimates["dice_fetus"].value == pytest.approx((1 + 0.5 + 1) / 3)
    assert estimates["volume_error_percent_fetus"].value == pytest.approx(20 / 3)
    assert estimates["volume_bias_percent_fetus"].value == pytest.approx(-20 / 3)
    assert estimates["dice_placenta"].value == 1
    assert set(estimates) >= {
        f"{m}_{n}" for m in ("dice", "hd95_mm", "asd_mm") for n in recipe.SHORT.values()
    }
