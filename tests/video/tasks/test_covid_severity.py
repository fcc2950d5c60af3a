from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import usvol
from usvol import weights
from usvol.canonical import canonicalise
from usvol.errors import ConfigError, KindError, WeightsError
from usvol.formats.video_writing import write_video
from usvol.result import Curve, Scores
from usvol.scan import Grid, Scan, Selection
from usvol.training.members import join_members
from video.phantoms.lung import Config as Lung
from video.phantoms.lung import simulate
from video.recipes.covid_severity import B_LINES, OUTPUTS, Settings, new_network, views
from video.tasks.covid_severity import Config, CovidSeverity, Panel, build

SETTINGS = Settings(width=4, readers=2, depth_samples=48, lines=40)
CALIBRATION = [
    {"gain": 2.0, "offset": -1.5, "deviation": 0.8},
    {"gain": 1.5, "offset": -0.5, "deviation": 0.6},
]
MEASUREMENTS = {
    "severity",
    "severity_expected",
    "severity_worst_frame",
    "a_lines_probability",
    "b_lines_probability",
}


def member_states():
    """Two members that share their readers, random but for heads strong enough to answer all grades."""
    torch.manual_seed(0)
    network = new_network(SETTINGS)
    first, second = ({name: value.clone() for name, value in network.state_dict().items()} for _ in range(2))
    for name in [name for name in first if name.endswith("head.weight")]:
        first[name] *= 8
        second[name] = first[name].clone()
        second[name][: B_LINES + 1] = torch.randn(B_LINES + 1, first[name].shape[1]) / 2
    return [first, second]


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> str:
    """Weights as ``usvol train`` writes them, of networks that learnt nothing."""
    path = tmp_path_factory.mktemp("weights") / "covid_severity.safetensors"
    facts = {
        "task": "covid_severity",
        "members": "2",
        "train_patients": json.dumps([["aa", "bb"], ["bb", "cc"]]),
        "calibration": json.dumps(CALIBRATION),
        "settings": SETTINGS.model_dump_json(),
    }
    weights.save(path, join_members(member_states()), metadata=facts, half=True)
    return str(path)


@pytest.fixture(scope="module")
def build_task(weights_file):
    built: dict[str, CovidSeverity] = {}

    def of(**options) -> CovidSeverity:
        key = json.dumps(options, sort_keys=True)
        if key not in built:
            built[key] = build(Config(weights=weights_file, **options), "cpu")
        return built[key]

    return of


@pytest.fixture(scope="module")
def clip() -> Scan:
    return simulate(2, Lung(severity=2, frames=12, fps=5, size=128))[0]


def findings(result):
    (curve,) = (f for f in result.findings if isinstance(f, Curve))
    return curve, {f.name: f for f in result.findings if isinstance(f, Scores)}


def values(result):
    return {m.name: m.value for m in result.measurements}


def check(result, scan):
    """Assert what holds of every answer, whatever the weights."""
    curve, scores = findings(result)
    assert curve.name == "severity"
    assert len(curve.values) == scan.data.shape[0]
    assert curve.times_s == scan.times_s
    assert curve.low is not None and curve.high is not None
    for low, value, high in zip(curve.low, curve.values, curve.high, strict=True):
        assert 0 <= low <= value <= high <= 3
    assert set(scores) == {"severity", "a_lines", "b_lines"}
    for found in scores.values():
        assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
        assert found.decision == found.classes[int(np.argmax(found.probabilities))]
    assert values(result).keys() == MEASUREMENTS
    assert values(result)["severity"] == int(scores["severity"].decision)
    assert values(result)["severity_worst_frame"] == max(curve.values)
    assert all(np.isfinite(v) for v in values(result).values())


def test_findings_lie_on_the_frames_of_the_input(build_task, clip):
    result = usvol.run(build_task(), clip)
    check(result, clip)
    curve, _ = findings(result)
    assert curve.frame_indices == tuple(range(12))
    assert result.provenance["members"] == [0, 1]
    assert len(result.provenance["weights_sha256"]) == 64
    assert not {flag.code for flag in result.flags} & {"too_dark", "frozen"}


def test_a_thinned_file_is_answered_at_the_frames_it_decoded(build_task, tmp_path):
    scan = simulate(4, Lung(frames=40, fps=25, size=96))[0]
    path = write_video(tmp_path / "clip.mp4", scan.data[:, 0, 0].numpy(), fps=25) or tmp_path / "clip.mp4"
    task = build_task()
    assert task.selection.fps == 5
    loaded = usvol.load(path, selection=task.selection)
    result = usvol.run(task, loaded)
    check(result, loaded)
    curve, _ = findings(result)
    assert 7 <= len(curve.values) <= 9
    assert curve.frame_indices == loaded.source.frame_indices
    assert set(np.diff(curve.frame_indices)) == {5}
    assert curve.times_s is not None
    assert curve.times_s[1] - curve.times_s[0] == pytest.approx(0.2, abs=0.01)
    again = usvol.run(task, usvol.load(path, selection=Selection(max_frames=3)))
    assert len(findings(again)[0].values) == 3


def test_the_decision_is_the_grade_next_to_the_score(build_task):
    task = build_task()
    for score in np.linspace(0, 3, 41):
        chances = task._chances(float(score))
        assert float(chances.sum()) == pytest.approx(1)
        if abs(score % 1 - 0.5) > 1e-3:
            assert int(chances.argmax()) == round(float(score))
    near, far = (dataclasses.replace(task, stretch=[{**CALIBRATION[0], "deviation": d}]) for d in (0.3, 1.5))
    assert near._chances(1.0)[1] > far._chances(1.0)[1]


def test_measured_severity_is_that_of_the_finding(build_task, clip):
    result = usvol.run(build_task(), clip)
    _, scores = findings(result)
    expected = sum(k * p for k, p in enumerate(scores["severity"].probabilities))
    (measured,) = (m for m in result.measurements if m.name == "severity_expected")
    assert measured.note is not None and "standard deviation" in measured.note  # it says what its range is
    assert measured.value == pytest.approx(expected, abs=1e-5)
    assert measured.low is not None and measured.high is not None
    assert 0 <= measured.low < measured.value < measured.high <= 3


def test_scores_are_stretched_to_the_experts_scale(build_task, clip):
    task = build_task()
    outputs = torch.zeros(1, 2, 2, OUTPUTS)
    outputs[..., :4] = torch.tensor([0.0, 0, 30, 0])  # every reader says 2
    torch.testing.assert_close(task._scores(outputs)[0], torch.tensor([[2.5, 2.5], [2.5, 2.5]]))
    outputs[..., :4] = torch.tensor([0.0, 0, 0, 30])
    assert float(task._scores(outputs).max()) > 3
    (curve, *_) = task.postprocess(outputs, task.preprocess(canonicalise(clip)))
    assert max(curve.values) == 3


def test_one_member_answers_alone_and_the_ensemble_is_their_mean(build_task, clip):
    members = [build_task(member=k) for k in range(2)]
    prepared = members[0].preprocess(canonicalise(clip))
    together = build_task().infer(prepared)
    assert together.shape[1] == 2
    for k, member in enumerate(members):
        torch.testing.assert_close(member.infer(prepared)[:, 0], together[:, k], rtol=1e-3, atol=1e-3)
        assert member.provenance["members"] == [k]
    assert not torch.allclose(together[:, 0], together[:, 1], atol=1e-2)
    assert [m.train_patients for m in members] == [{"aa", "bb"}, {"bb", "cc"}]
    assert build_task().train_patients == {"aa", "bb", "cc"}
    assert {m.members for m in members} == {2}
    check(usvol.run(members[1], clip), clip)


def test_a_panel_answers_as_its_members_do():
    networks = []
    for state in member_states():
        networks.append(new_network(SETTINGS).eval())
        networks[-1].load_state_dict(state)
    frames = torch.rand(2, 3, 1, 48, 40) * 255
    with torch.no_grad():
        answers = Panel(networks).eval()(frames)
        assert answers.shape == (2, 3, 2, 2, OUTPUTS)
        for k, network in enumerate(networks):
            torch.testing.assert_close(answers[:, :, k], network(frames), rtol=1e-4, atol=1e-4)


def mirrored(scan):
    return dataclasses.replace(scan, data=scan.data.flip(-1))


def test_with_mirror_a_mirrored_picture_scores_the_same_and_without_not(build_task, clip):
    plain, both = build_task(mirror=False), build_task()
    prepared = both.preprocess(canonicalise(clip))
    torch.testing.assert_close(both.infer(mirrored(prepared)), both.infer(prepared), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain.infer(mirrored(prepared)), plain.infer(prepared), atol=1e-2)
    views = [plain.infer(prepared), plain.infer(mirrored(prepared))]
    torch.testing.assert_close(torch.stack(views).mean(0), both.infer(prepared), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("frames", [2, 3, 31, 32, 33, 75])
def test_a_cine_of_any_length_is_answered(build_task, clip, frames):
    repeats = -(-frames // 12)
    data = clip.data.repeat(repeats, 1, 1, 1, 1)[:frames]
    scan = dataclasses.replace(clip, data=data, times_s=tuple(i / 5 for i in range(frames)))
    check(usvol.run(build_task(), scan), scan)


def test_windows_of_a_long_cine_agree_with_one_reading_away_from_their_seams(build_task, clip):
    data = clip.data.repeat(4, 1, 1, 1, 1)[:33]
    scan = dataclasses.replace(clip, data=data, times_s=None)
    task = build_task()
    prepared = task.preprocess(canonicalise(scan))
    seen = views(prepared.data[:, 0, 0], size=task.settings.input_size)
    whole, windows = task.network(seen).mean(0), task.infer(prepared)
    assert windows.shape == whole.shape
    assert float((windows - whole).abs().mean()) < 0.1 * float(whole.std())


def test_a_single_frame_is_answered_by_the_network_but_a_still_is_refused(build_task, clip):
    task = build_task()
    still = dataclasses.replace(clip, data=clip.data[:1], times_s=None)
    with pytest.raises(KindError, match="clip"):
        usvol.run(task, still)
    prepared = task.preprocess(canonicalise(still))
    assert len(task.infer(prepared)) == 1
    assert task.postprocess(task.infer(prepared), prepared)
    assert not {flag.code for flag in task.flags(task.infer(prepared), prepared)} & {"frozen"}


def test_a_volume_is_refused(build_task):
    with pytest.raises(KindError):
        usvol.run(build_task(), Scan(torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8), Grid((8, 8, 8))))


def test_unknown_frame_times_stay_unknown(build_task, clip):
    scan = dataclasses.replace(clip, times_s=None)
    result = usvol.run(build_task(), scan)
    check(result, scan)
    assert findings(result)[0].times_s is None
    assert "unknown_frame_times" in {flag.code for flag in result.flags}
    assert values(result) == values(usvol.run(build_task(), clip))


def flags(task, scan):
    return {flag.code: flag.severity.value for flag in usvol.run(task, scan).flags}


def test_a_black_clip_is_flagged_as_severe(build_task, clip):
    black = dataclasses.replace(clip, data=torch.zeros_like(clip.data))
    assert flags(build_task(), black)["too_dark"] == "severe"
    dim = dataclasses.replace(clip, data=clip.data // 60)
    assert "too_dark" in flags(build_task(), dim)
    assert "too_dark" not in flags(build_task(), clip)


def test_a_frozen_clip_is_flagged(build_task, clip):
    frozen = dataclasses.replace(clip, data=clip.data[:1].repeat(12, 1, 1, 1, 1))
    assert flags(build_task(), frozen)["frozen"] == "warning"
    assert "frozen" not in flags(build_task(), clip)


def test_a_picture_without_a_sector_is_flagged(build_task):
    noise = torch.randint(0, 255, (4, 1, 1, 96, 96), generator=torch.Generator().manual_seed(0))
    scan = Scan(noise.to(torch.uint8), Grid((1, 96, 96)))
    prepared = build_task().preprocess(canonicalise(scan))
    found = build_task().flags(torch.zeros(1), dataclasses.replace(prepared, sector=None))
    assert "sector_unknown" in {flag.code for flag in found}


def test_unknown_weights_and_members_are_refused(weights_file, tmp_path):
    with pytest.raises(WeightsError, match="no_such_weights"):
        build(Config(weights="no_such_weights"), "cpu")
    with pytest.raises(WeightsError, match="missing"):
        build(Config(weights=str(tmp_path / "none.safetensors")), "cpu")
    with pytest.raises(ConfigError, match="members 0 to 1, not 2"):
        build(Config(weights=weights_file, member=2), "cpu")


def test_weights_that_differ_from_their_card_are_refused(weights_file, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(weights_file).read_bytes())
    copy.with_suffix(".md").write_text(f"---\nsha256: {'f' * 64}\n---\n# copy\n", encoding="utf-8")
    with pytest.raises(WeightsError, match="sha256"):
        build(Config(weights=str(copy)), "cpu")


def test_the_option_reaches_the_task_by_name(weights_file):
    task = usvol.build_task("covid_severity", device="cpu", overrides={"weights": weights_file, "member": 1})
    assert isinstance(task, CovidSeverity)
    assert task.provenance["members"] == [1]
    with pytest.raises(ConfigError):
        usvol.build_task("covid_severity", device="cpu", overrides={"wieghts": weights_file})
