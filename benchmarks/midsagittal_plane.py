"""Three ways to the mid-sagittal plane side by side on the same simulated volumes.

    python benchmarks/midsagittal_plane.py --n 50                 simulated:test
    python benchmarks/midsagittal_plane.py --n 24 --atlas DIR     heads from a fetal brain atlas

Symmetry search alone about the head's sphere (the idea of Nie et al., UMB 2017), one-shot regression, and
the task as it ships: regression from several sides, then iterative refinement (after Li et al., MICCAI 2018).
All three share the finder of heads. Reported with 95 % intervals over volumes (bootstrap), and the first
against the others by Wilcoxon's signed-rank test on the differences of the same volumes' angles.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from usvol import pipeline, registry
from usvol.scan import Scan
from usvol.training.cases import Case
from usvol.training.loop import recipe_of
from usvol.training.samples import simulate_case

METHODS = ("iterative", "one_shot", "symmetry")
FIRST_SEED, ATLAS_SEED = 1_000_000, 4_000_000
SHOWN = ("under_4mm", "under_10deg", "under_20deg", "facing_right", "distance_mm", "angle_deg", "offset_mm")


def main() -> None:
    """Run every method on every volume and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--atlas", type=Path, help="folder of a fetal brain atlas to draw the heads from")
    parser.add_argument("--weights", default="midsagittal_plane")
    parser.add_argument("--json", type=Path, help="also write every number there")
    options = parser.parse_args()
    recipe = recipe_of("midsagittal_plane")
    tasks = {
        method: registry.build_task(
            "midsagittal_plane", device="cpu", overrides={"method": method, "weights": options.weights}
        )
        for method in METHODS
    }
    rows: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for scan, case in _cases(options.n, atlas=options.atlas):
        for method, task in tasks.items():
            start = time.perf_counter()
            result = pipeline.run(task, scan)
            seconds = time.perf_counter() - start
            rows[method].append({"id": case.id, "seconds": seconds, **recipe.row(result, case)})
        angles = ", ".join(f"{m} {r[-1].get('angle_deg', float('nan')):.1f}°" for m, r in rows.items())
        print(f"{case.id}: {angles}", file=sys.stderr)
    print(_table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _cases(count: int, *, atlas: Path | None) -> Iterator[tuple[Scan, Case]]:
    recipe = recipe_of("midsagittal_plane")
    first = FIRST_SEED if atlas is None else ATLAS_SEED
    settings = {} if atlas is None else {"atlas": str(atlas), "present": True}
    for seed in range(first, first + count):
        scan, _, truth = simulate_case(recipe, seed, settings=settings)
        yield scan, Case(str(seed), str(seed), Path(), truth, dataset="simulated")


def _table(rows: dict[str, list[dict[str, Any]]]) -> str:
    recipe = recipe_of("midsagittal_plane")
    groups = [row["id"] for row in rows[METHODS[0]]]
    scores = {method: recipe.metrics(some, groups) for method, some in rows.items()}
    lines = ["| measure | " + " | ".join(METHODS) + " |", "|---" * (1 + len(METHODS)) + "|"]
    for measure in (*SHOWN, "missed", "no_head_recall"):
        cells = [
            f"{s[measure].value:.3f} ({s[measure].low:.3f} to {s[measure].high:.3f})" if measure in s else "-"
            for s in scores.values()
        ]
        lines.append(f"| {measure} | " + " | ".join(cells) + " |")
    seconds = [f"{np.median([r['seconds'] for r in some]):.2f}" for some in rows.values()]
    lines.append("| seconds per volume (median) | " + " | ".join(seconds) + " |")
    for other in METHODS[1:]:
        pairs = [
            (a["angle_deg"], b["angle_deg"])
            for a, b in zip(rows[METHODS[0]], rows[other], strict=True)
            if "angle_deg" in a and "angle_deg" in b
        ]
        gain = np.array([a - b for a, b in pairs])
        if len(gain) > 5 and gain.any():
            answer: Any = wilcoxon(gain, zero_method="pratt")
            lines.append(
                f"\n{METHODS[0]} minus {other}: median {np.median(gain):+.1f}°, p = {answer.pvalue:.2g}"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
