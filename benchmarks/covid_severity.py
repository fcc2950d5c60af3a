"""Clips per second of ``covid_severity``, file to result, against a plain PyAV + eager torch reader.

Both read the same files on the CPU in one process, in turn, and put the same frames (about 5 per second)
and their mirror images through the same float32 network. The peer is what one would write in ten lines:
PyAV decodes every frame to grey, frames are resized, and eager torch answers frame by frame. It checks no
file, looks for no sector, straightens no beams and keeps no provenance, all of which usvol does: a ratio
of 1 means that these come for free.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor, nn

import usvol
from usvol import weights
from usvol.formats.video_writing import write_video
from usvol.training.members import member_state
from video.phantoms import lung
from video.recipes.covid_severity import SELECTION, Settings, expected_severity, new_network, resized
from video.tasks.covid_severity import Panel

PEER = "PyAV + eager torch f32, frame by frame"
Reader = Callable[[Path], float]


def main() -> None:
    """Measure, and print the ratio."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        clips, origin = find_clips(options.data, options.clips) or (
            simulate_clips(Path(folder), options.clips),
            "simulated",
        )
        report = {"data": origin, **measure(clips, rounds=options.rounds, name=options.weights)}
    print(json.dumps(report, indent=2) if options.json else as_text(report))


def parse() -> argparse.Namespace:
    data = Path(os.environ.get("USVOL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        default=data / "lus" / "blues",
        help="folder of clips; phantoms where it has none",
    )
    parser.add_argument("--clips", type=int, default=6, help="number of clips, spread over the folder")
    parser.add_argument(
        "--rounds", type=int, default=3, help="timed rounds over all clips, after an untimed one"
    )
    parser.add_argument("--weights", default="covid_severity", help="shipped name or .safetensors file")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; OpenVINO chooses its own")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def find_clips(folder: Path, count: int) -> tuple[list[Path], str] | None:
    found = sorted(folder.rglob("*.mp4"))
    if not found:
        return None
    chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
    return [found[i] for i in chosen], folder.name


def simulate_clips(folder: Path, count: int) -> list[Path]:
    clips = []
    for seed in range(count):
        scan, _ = lung.simulate(seed, lung.Config(frames=100, fps=25, size=350))
        clips.append(write_video(folder / f"{seed}.mp4", scan.data[:, 0, 0].numpy(), fps=25))
    return clips


def measure(clips: Sequence[Path], *, rounds: int, name: str) -> dict[str, object]:
    """Read every clip with both readers, one right after the other and in changing order."""
    stages: dict[str, list[float]] = defaultdict(list)
    ours, peer = usvol_reader(name, stages), plain_reader(name)
    for clip in clips:
        ours(clip)
        peer(clip)
    stages.clear()
    pairs = []
    for number in range(rounds):
        for clip in clips:
            if number % 2:
                second = seconds(peer, clip)
                pairs.append((seconds(ours, clip), second))
            else:
                pairs.append((seconds(ours, clip), seconds(peer, clip)))
    return {
        "clips": len(clips),
        "rounds": rounds,
        "torch_threads": torch.get_num_threads(),
        "frames_per_clip": statistics.mean(stages.pop("frames")),
        "usvol_clips_per_s": spread([1 / a for a, _ in pairs]),
        "peer": PEER,
        "peer_clips_per_s": spread([1 / b for _, b in pairs]),
        "ratio": spread([b / a for a, b in pairs]),
        "usvol_stages_s_per_clip": {k: round(statistics.median(v), 4) for k, v in stages.items()},
    }


def seconds(read: Reader, clip: Path) -> float:
    start = time.perf_counter()
    read(clip)
    return time.perf_counter() - start


def usvol_reader(name: str, stages: dict[str, list[float]]) -> Reader:
    """Return a reader of files by ``usvol.load`` and ``usvol.run`` that notes its stages."""
    task = usvol.build_task("covid_severity", device="cpu", overrides={"weights": name})

    def read(path: Path) -> float:
        start = time.perf_counter()
        scan = usvol.load(path, selection=task.selection)
        loaded = time.perf_counter()
        result = usvol.run(task, scan)
        inside = result.provenance["stage_seconds"]
        stages["load"].append(loaded - start)
        for stage, seconds in inside.items():
            stages[stage].append(seconds)
        stages["provenance"].append(time.perf_counter() - loaded - sum(inside.values()))
        stages["frames"].append(scan.data.shape[0])
        return float(next(m.value for m in result.measurements if m.name == "severity_expected") or 0)

    return read


def plain_reader(name: str) -> Reader:
    """Return the peer: decode all with PyAV, resize, eager torch on one frame and its mirror at a time."""
    stored = weights.find("video", name)
    settings = Settings.model_validate_json(stored.metadata["settings"])
    members: list[nn.Module] = []
    for index in range(int(stored.metadata["members"])):
        members.append(new_network(settings))
        members[-1].load_state_dict(member_state(stored.state, index))
    network = Panel(members).eval()  # type: ignore[arg-type]

    @torch.inference_mode()
    def read(path: Path) -> float:
        answers = []
        for frame in resized(thinned(*decode(path)).float(), settings.input_size):
            views = torch.stack([frame, frame.flip(-1)])[:, None, None]
            answers.append(expected_severity(network(views)).mean())
        return float(torch.stack(answers).mean())

    return read


def decode(path: Path) -> tuple[Tensor, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="gray") for f in container.decode(stream)]
        return torch.from_numpy(np.stack(frames)), float(stream.average_rate or SELECTION.fps or 1)


def thinned(frames: Tensor, rate: float) -> Tensor:
    return frames[:: max(1, round(rate / (SELECTION.fps or rate)))][: SELECTION.max_frames]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)}


def as_text(report: dict[str, object]) -> str:
    def shown(key: str) -> str:
        numbers = report[key]
        assert isinstance(numbers, dict)
        return f"{numbers['median']:.2f} ({numbers['low']:.2f} to {numbers['high']:.2f})"

    stages = report["usvol_stages_s_per_clip"]
    assert isinstance(stages, dict)
    head = (
        f"{report['clips']} clips of {report['data']}, {report['frames_per_clip']:.0f} frames read of each, "
        f"{report['rounds']} rounds, {report['torch_threads']} torch threads; median (quartiles) of clips"
    )
    lines = [
        head,
        f"usvol: {shown('usvol_clips_per_s')} clips/s",
        f"{PEER}: {shown('peer_clips_per_s')} clips/s",
        f"ratio (usvol / peer, above 1 is faster): {shown('ratio')}",
        "usvol, median ms per clip: " + ", ".join(f"{k} {1000 * v:.0f}" for k, v in stages.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
