"""What ``aortic_valve`` reaches, stage by stage and on volumes without a valve, and how fast it is.

    python benchmarks/aortic_valve.py --n 50 --absent 50 --seconds 10

Accuracy: the same simulated volumes (seeds from 1,000,000, which no training sees; --split validation: from
2,000,000) are read by the detection networks alone (mean shape in the box), by those and the aligned network,
and by all with the shape model. No valve: as many volumes that show none beside them. Speed: one volume of
160³ in memory, end to end through the pipeline, --seconds times, and the same with eager torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models3d.tasks.aortic_valve import TRAINING, AorticValve, parts_of
from usvol import pipeline, registry
from usvol.metrics import Estimate
from usvol.resampling import resize
from usvol.runtime import Network
from usvol.scan import Scan
from usvol.training.cases import Case
from usvol.training.loop import recipe_of
from usvol.training.members import restore
from usvol.training.recipe import Recipe, Row
from usvol.training.samples import simulate_case

FIRST_SEED = {"test": 1_000_000, "validation": 2_000_000}
STAGES = ("detection", "labels", "shape")
Cases = list[tuple[Scan, Case]]


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="aortic_valve", help="shipped name, or a .safetensors file")
    parser.add_argument("--split", choices=FIRST_SEED, default="test")
    parser.add_argument("--n", type=int, default=50, help="volumes with a valve")
    parser.add_argument("--absent", type=int, default=50, help="volumes without")
    parser.add_argument("--seconds", type=int, default=10, help="repeats of the timing; 0 for none")
    parser.add_argument("--json", type=Path, help="also write every number there")
    options = parser.parse_args()
    recipe, first = recipe_of("aortic_valve"), FIRST_SEED[options.split]
    rows: dict[str, list[Row]] = {}
    if options.n:
        cases = list(simulated(recipe, range(first, first + options.n), settings={}))
        none = range(first + 10_000, first + 10_000 + options.absent)
        cases += simulated(recipe, none, settings={"absent": 1.0})
        rows = accuracy(recipe, cases, weights=options.weights)
        print(table({name: recipe.metrics(some, [r["id"] for r in some]) for name, some in rows.items()}))
    if options.seconds:
        print(timing(options.weights, repeats=options.seconds))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def simulated(recipe: Recipe, seeds: range, *, settings: dict[str, Any]) -> Iterator[tuple[Scan, Case]]:
    """Yield scans with their truth."""
    for seed in seeds:
        scan, labels, truth = simulate_case(recipe, seed, settings=settings)
        yield scan, Case(str(seed), str(seed), Path(), {**truth, "labels": labels}, dataset="simulated")
        print(f"simulated {seed}", file=sys.stderr)


def task_of(weights: str, **settings: Any) -> AorticValve:
    """Build the task on the CPU."""
    task = registry.build_task("aortic_valve", device="cpu", overrides={"weights": weights, **settings})
    assert isinstance(task, AorticValve)
    return task


def accuracy(recipe: Recipe, cases: Cases, *, weights: str) -> dict[str, list[Row]]:
    """Return the rows of every stage on the same volumes."""
    tasks = {stage: task_of(weights, stage=stage) for stage in STAGES}
    return {
        stage: [{"id": case.id, **recipe.row(pipeline.run(task, scan), case)} for scan, case in cases]
        for stage, task in tasks.items()
    }


def table(estimates: dict[str, Any]) -> str:
    """Return a table of metrics by stage."""
    names: Sequence[str] = list(dict.fromkeys(name for e in estimates.values() for name in e))
    lines = ["| measure | " + " | ".join(estimates) + " |", "|---" * (1 + len(estimates)) + "|"]
    for name in names:
        cells = [_cell(e.get(name)) for e in estimates.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def timing(weights: str, *, repeats: int) -> str:
    """Return median and spread of the seconds per volume, by stage, compiled and in eager torch."""
    scan, _, _ = simulate_case(recipe_of("aortic_valve"), FIRST_SEED["validation"], settings={"cut": False})
    grid = scan.grid
    cube = resize(scan, (160, 160, 160))
    loaded = dataclasses.replace(cube, sector=None)
    task = task_of(weights)
    runs = {
        task.provenance["engine"]: task,
        "eager torch": dataclasses.replace(task, networks=eager(weights, repeats=task.config.repeats)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, one in runs.items():
            start = time.perf_counter()
            result = pipeline.run(one, loaded)
            seconds[name].append(time.perf_counter() - start)
            stages[name].append(dict(result.provenance["stage_seconds"]))
    lines = [
        f"160³ samples from {grid.shape}; {repeats} runs, alternating; {torch.get_num_threads()} threads\n"
    ]
    lines += ["| networks | median s | 5 % | 95 % | stages (median s) |", "|---|---|---|---|---|"]
    for name in runs:
        values, parts = seconds[name][1:], stages[name][1:]
        median = {key: float(np.median([p[key] for p in parts])) for key in parts[0]}
        shown = ", ".join(f"{key} {value:.3f}" for key, value in median.items())
        low, high = np.percentile(values, (5, 95))
        lines.append(f"| {name} | {np.median(values):.3f} | {low:.3f} | {high:.3f} | {shown} |")
    first, other = (float(np.median(seconds[name][1:])) for name in runs)
    lines.append(f"\nEager torch takes {other / first:.2f} times as long, end to end.")
    return "\n".join(lines) + "\n"


def eager(weights: str, *, repeats: int) -> dict[str, Network]:
    """Return the task's networks as torch runs them."""

    def run(module: torch.nn.Module) -> Callable[..., Any]:
        def answer(*inputs: torch.Tensor) -> Any:
            with torch.inference_mode():
                return module(*inputs)

        return answer

    modules = parts_of(restore(TRAINING, "models3d", name=weights).network, repeats=repeats)
    return {
        name: Network(run(module.eval()), "torch", "cpu", "f32", 0.0)
        for name, (module, _, _) in modules.items()
    }


if __name__ == "__main__":
    main()
