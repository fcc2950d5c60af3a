"""The coarse networks of ``needle`` side by side, on the same simulated volumes; and volumes per second.

    python benchmarks/needle.py FCN.safetensors TRIPLANAR.safetensors --n 100
    python benchmarks/needle.py FCN.safetensors --speed 128 --threads 2

All that follows the coarse network is the same for both. Volumes are simulated with seeds from 2,000,000
(validation; --first picks others). Reported: mean with 95 % interval over volumes (bootstrap), and the tip's
error of each other file against the first on the needles that both found, by Wilcoxon's signed-rank test.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wilcoxon

from models3d.phantoms.needle import Config, simulate
from usvol import pipeline, registry
from usvol.task import Task
from usvol.training.cases import Case
from usvol.training.loop import recipe_of
from usvol.training.samples import simulate_case

FIRST_SEED = 2_000_000
Rows = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Run every network on every volume and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", nargs="+", type=Path, help="files that `usvol train needle` wrote")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="seed of the first volume")
    parser.add_argument("--speed", type=int, help="only time volumes of so many samples along each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--json", type=Path, help="also write every number there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = {
        f"{path.parent.name}/{path.stem}": registry.build_task(
            "needle", device="cpu", overrides={"weights": str(path), "precision": options.precision}
        )
        for path in options.weights
    }
    if options.speed:
        print(speeds(tasks, side=options.speed, count=options.n))
        return
    rows = compared(tasks, first=options.first, count=options.n)
    print(tables(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def speeds(tasks: dict[str, Task], *, side: int, count: int) -> str:
    """Time the whole pipeline and the stages on one volume of ``side``³ (seconds by the wall, medians)."""
    spacing = 0.3
    scan, _ = simulate(
        FIRST_SEED, Config(size=side, spacing_mm=(spacing, spacing, spacing), present=True, style="chicken")
    )
    pad = [n for size in reversed(scan.grid.shape) for n in (0, side - size)]
    data = torch.nn.functional.pad(scan.data, pad, mode="replicate")
    whole = scan.with_data(data, grid=scan.grid.crop((0, 0, 0), (side, side, side)), step="enlarged")
    lines = [
        f"| weights | volumes of {side}³ per second | of these, infer | postprocess |",
        "|---|---|---|---|",
    ]
    for name, task in tasks.items():
        pipeline.run(task, whole)
        took, stages = [], []
        for _ in range(count):
            start = time.perf_counter()
            result = pipeline.run(task, whole)
            took.append(time.perf_counter() - start)
            stages.append(result.provenance["stage_seconds"])
        parts = [np.median([s[stage] for s in stages]) for stage in ("infer", "postprocess")]
        lines.append(f"| {name} | {1 / np.median(took):.1f} | {parts[0]:.3f} s | {parts[1]:.3f} s |")
    return "\n".join(lines)


def compared(tasks: dict[str, Task], *, first: int, count: int) -> Rows:
    """Run all tasks on the same volumes."""
    recipe = recipe_of("needle")
    rows: Rows = {name: [] for name in tasks}
    for seed in range(first, first + count):
        scan, labels, truth = simulate_case(recipe, seed, settings={})
        case = Case(str(seed), str(seed), Path(), {**truth, "labels": labels}, dataset="simulated")
        for name, task in tasks.items():
            start = time.perf_counter()
            result = pipeline.run(task, scan)
            took = time.perf_counter() - start
            rows[name].append({"id": case.id, "seconds": took, **recipe.row(result, case)})
        print(f"{seed}: " + ", ".join(f"{n} {r[-1].get('f1')}" for n, r in rows.items()), file=sys.stderr)
    return rows


def tables(rows: Rows) -> str:
    """Return means, and the paired test of the tip's error."""
    recipe = recipe_of("needle")
    groups = [row["id"] for row in next(iter(rows.values()))]
    estimates = {name: recipe.metrics(some, groups) for name, some in rows.items()}
    lines = ["| measure | " + " | ".join(rows) + " |", "|---" * (1 + len(rows)) + "|"]
    for measure in next(iter(estimates.values())):
        shown = [
            f"{e[measure].value:.3f} ({e[measure].low:.3f} to {e[measure].high:.3f})" if measure in e else "-"
            for e in estimates.values()
        ]
        lines.append(f"| {measure} | " + " | ".join(shown) + " |")
    lines.append(
        "| seconds per volume (median) | "
        + " | ".join(f"{np.median([r['seconds'] for r in some]):.2f}" for some in rows.values())
        + " |"
    )
    first, *others = rows
    for other in others:
        pairs = [
            (a["tip_mm"], b["tip_mm"])
            for a, b in zip(rows[first], rows[other], strict=True)
            if "tip_mm" in a and "tip_mm" in b
        ]
        gain = np.array([a - b for a, b in pairs])
        if len(gain) and gain.any():
            answer: Any = wilcoxon(gain, zero_method="pratt")
            lines.append(
                f"\nTip, {first} minus {other}, {len(gain)} needles found by both: {gain.mean():+.3f} mm, "
                f"p = {float(answer.pvalue):.2g} (Wilcoxon)"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
