"""The networks of ``prenatal`` side by side on the same simulated volumes, with a paired test.

    python benchmarks/prenatal.py FCN.safetensors RNN.safetensors DEEPMEDIC.safetensors --n 50

Every network gets the same volumes (seeds from 1,000,000, which no training sees), one look at the whole view
and one closer, without mirrored copies unless --flips is given. Reported: mean with 95 % interval over
volumes (bootstrap), and the first network against each other one by Wilcoxon's signed-rank test on the
differences of the same volumes (two-sided; Pratt's way with ties). --data DIR takes a folder of labelled
volumes instead, such as ``other_simulator.py`` writes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from usvol import pipeline, registry
from usvol.loading import load
from usvol.scan import Scan
from usvol.task import Task
from usvol.training.cases import Case
from usvol.training.loop import recipe_of
from usvol.training.recipe import Recipe
from usvol.training.samples import simulate_case

FIRST_SEED = 1_000_000
COMPARED = [f"{m}_{n}" for m in ("dice", "hd95_mm", "asd_mm") for n in ("fetus", "sac", "placenta")]
Rows = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Run every network on every volume and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", nargs="+", type=Path, help="files that `usvol train prenatal` wrote")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--data", type=Path, help="folder of labelled volumes instead of simulated ones")
    parser.add_argument("--flips", action="store_true", help="average over mirrored copies")
    parser.add_argument("--json", type=Path, help="also write every number there")
    options = parser.parse_args()
    recipe = recipe_of("prenatal")
    tasks = {path.parent.name + "/" + path.stem: _task(path, flips=options.flips) for path in options.weights}
    rows: Rows = {name: [] for name in tasks}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for scan, case in _cases(recipe, options.n, data=options.data):
        for name, task in tasks.items():
            start = time.perf_counter()
            result = pipeline.run(task, scan)
            seconds[name].append(time.perf_counter() - start)
            rows[name].append({"id": case.id, **recipe.row(result, case)})
        print(
            f"{case.id}: " + ", ".join(f"{n} {r[-1]['dice_fetus']:.3f}" for n, r in rows.items()),
            file=sys.stderr,
        )
    groups = [row["id"] for row in next(iter(rows.values()))]
    print(_means(recipe, rows, groups, seconds=seconds))
    print(_tests(rows))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "seconds": seconds}, indent=1), encoding="utf-8")


def _task(path: Path, *, flips: bool) -> Task:
    return registry.build_task("prenatal", device="cpu", overrides={"weights": str(path), "flips": flips})


def _cases(recipe: Recipe, count: int, *, data: Path | None) -> Iterator[tuple[Scan, Case]]:
    if data is not None:
        for case in registry.module(registry.Group.DATASETS, recipe.datasets[0]).cases(data)[:count]:
            yield load(case.path), case
        return
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        scan, labels, truth = simulate_case(recipe, seed, settings={})
        yield scan, Case(str(seed), str(seed), Path(), {**truth, "labels": labels}, dataset="simulated")


def _means(recipe: Recipe, rows: Rows, groups: Sequence[str], *, seconds: dict[str, list[float]]) -> str:
    estimates = {name: recipe.metrics(some, groups) for name, some in rows.items()}
    lines = ["| measure | " + " | ".join(rows) + " |", "|---" * (1 + len(rows)) + "|"]
    for measure in next(iter(estimates.values())):
        shown = [
            f"{e[measure].value:.3f} ({e[measure].low:.3f} to {e[measure].high:.3f})"
            for e in estimates.values()
        ]
        lines.append(f"| {measure} | " + " | ".join(shown) + " |")
    medians = [f"{np.median(seconds[name]):.1f}" for name in rows]
    lines.append("| seconds per volume (median) | " + " | ".join(medians) + " |")
    return "\n".join(lines) + "\n"


def _tests(rows: Rows) -> str:
    first, *others = rows
    lines = [f"| {first} minus … | " + " | ".join(f"{name}: mean, p" for name in others) + " |"]
    lines += ["|---" * (1 + len(others)) + "|"]
    for measure in COMPARED:
        cells = []
        for other in others:
            pairs = [
                (a[measure], b[measure])
                for a, b in zip(rows[first], rows[other], strict=True)
                if measure in a
            ]
            gain = np.array([a - b for a, b in pairs])
            answer: Any = wilcoxon(gain, zero_method="pratt") if gain.any() else None
            p = 1.0 if answer is None else float(answer.pvalue)
            cells.append(f"{gain.mean():+.3f}, p = {p:.2g}")
        lines.append(f"| {measure} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
