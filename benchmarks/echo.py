"""Frames per second of both echocardiography tasks, file to result, against OpenCV + eager torch.

Both read the same simulated apical cines, written as AVI of 112 x 112 pixels, on the CPU in one process, in
turn, and put every frame through the same float32 network. The peer is what one would write in ten lines:
``cv2.VideoCapture``, grey, then eager torch over the clip. It stops at the network's outputs: it looks for no
sector, tidies no mask, finds no beat, measures nothing and keeps no provenance, all of which usvol does.
Needs OpenCV: ``pip install ".[bench]"``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import usvol
from usvol.formats.video_writing import write_video
from usvol.training.members import restore
from video.phantoms import heart
from video.recipes import cardiac_phase, ejection_fraction
from video.recipes.echo_clips import SIDE, steps_s

Reader = Callable[[Path], None]
RECIPES = {"cardiac_phase": cardiac_phase.TRAINING, "ejection_fraction": ejection_fraction.TRAINING}
FPS = 50.0


def main() -> None:
    """Measure both tasks, and print frames per second and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=6, help="number of simulated clips")
    parser.add_argument(
        "--rounds", type=int, default=3, help="timed rounds over all clips, after an untimed one"
    )
    parser.add_argument("--threads", type=int, default=None, help="torch threads; OpenVINO chooses its own")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        clips = simulate_clips(Path(folder), options.clips)
        report = {name: measure(name, clips, rounds=options.rounds) for name in RECIPES}
    print(json.dumps(report, indent=2) if options.json else as_text(report))


def simulate_clips(folder: Path, count: int) -> dict[Path, int]:
    """Write clips of two to three seconds; return how many frames each has."""
    clips = {}
    for seed in range(count):
        scan, _ = heart.simulate(seed, heart.Config(fps=FPS, beats=3, size=128))
        frames = F.interpolate(scan.data[:, 0].float(), size=(SIDE, SIDE), mode="area")[:, 0]
        path = write_video(folder / f"{seed}.avi", frames.round().to(torch.uint8).numpy(), fps=FPS)
        clips[path] = len(frames)
    return clips


def measure(name: str, clips: dict[Path, int], *, rounds: int) -> dict[str, object]:
    """Read every clip with both readers, one right after the other and in changing order."""
    stages: dict[str, list[float]] = defaultdict(list)
    ours, peer = usvol_reader(name, stages), plain_reader(name)
    for clip in clips:
        ours(clip)
        peer(clip)
    stages.clear()
    pairs = []
    for number in range(rounds):
        for clip, count in clips.items():
            first, second = (ours, peer) if number % 2 else (peer, ours)
            taken = {read: seconds(read, clip) for read in (first, second)}
            pairs.append((count / taken[ours], count / taken[peer]))
    return {
        "clips": len(clips),
        "frames_per_clip": statistics.mean(clips.values()),
        "rounds": rounds,
        "torch_threads": torch.get_num_threads(),
        "usvol_frames_per_s": spread([a for a, _ in pairs]),
        "peer_frames_per_s": spread([b for _, b in pairs]),
        "ratio": spread([a / b for a, b in pairs]),
        "usvol_stages_s_per_clip": {stage: round(statistics.median(v), 4) for stage, v in stages.items()},
    }


def usvol_reader(name: str, stages: dict[str, list[float]]) -> Reader:
    """Return a reader of files by ``usvol.load`` and ``usvol.run`` that notes its stages."""
    task = usvol.build_task(name, device="cpu")

    def read(path: Path) -> None:
        start = time.perf_counter()
        scan = usvol.load(path, selection=task.selection)
        loaded = time.perf_counter()
        result = usvol.run(task, scan)
        stages["load"].append(loaded - start)
        inside = result.provenance["stage_seconds"]
        for stage, taken in inside.items():
            stages[stage].append(taken)
        stages["provenance"].append(time.perf_counter() - loaded - sum(inside.values()))

    return read


def plain_reader(name: str) -> Reader:
    """Return the peer: all frames by OpenCV, then eager torch over the clip."""
    network = restore(RECIPES[name], "video", name=name, member=0).network.eval()

    @torch.inference_mode()
    def read(path: Path) -> None:
        frames = decode(path)
        steps = steps_s(torch.arange(len(frames)) / FPS)
        network(frames[None, :, None].float(), steps[None])

    return read


def decode(path: Path) -> Tensor:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            break
        frames.append(cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (SIDE, SIDE)))
    capture.release()
    return torch.from_numpy(np.stack(frames))


def seconds(read: Reader, clip: Path) -> float:
    start = time.perf_counter()
    read(clip)
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": round(median, 2), "low": round(low, 2), "high": round(high, 2)}


def as_text(report: dict[str, dict]) -> str:
    lines = []
    for name, found in report.items():
        ours, peer, ratio = (found[key] for key in ("usvol_frames_per_s", "peer_frames_per_s", "ratio"))
        stages = ", ".join(f"{k} {1000 * v:.0f}" for k, v in found["usvol_stages_s_per_clip"].items())
        clips = f"{found['clips']} simulated clips of {found['frames_per_clip']:.0f} frames"
        rounds = f"{found['rounds']} rounds, {found['torch_threads']} torch threads"
        lines += [
            f"{name}: {clips}, {rounds}; median (quartiles)",
            f"  usvol, file to result: {shown(ours)} frames/s",
            f"  OpenCV + eager torch:  {shown(peer)} frames/s",
            f"  ratio (above 1 is faster): {shown(ratio)}",
            f"  usvol, median ms per clip: {stages}",
        ]
    return "\n".join(lines)


def shown(numbers: dict[str, float]) -> str:
    return f"{numbers['median']:.2f} ({numbers['low']:.2f} to {numbers['high']:.2f})"


if __name__ == "__main__":
    main()
