"""Draw the report's small charts as SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 320, 150
_NARROWEST = 1e-9  # spread of numbers, of the largest, that rounding explains
_LEFT, _BOTTOM, _TOP = 8, 22, 18


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, its height and what the pointer shows."""

    label: str
    count: int
    hint: str = ""


def bars(title: str, data: Sequence[Bar]) -> Markup:
    """Draw a bar chart with the count above each bar."""
    top = max((bar.count for bar in data), default=0) or 1
    step = (WIDTH - 2 * _LEFT) / max(len(data), 1)
    parts: list[str] = []
    for index, bar in enumerate(data):
        height = (HEIGHT - _BOTTOM - _TOP) * bar.count / top
        x, y = _LEFT + index * step, HEIGHT - _BOTTOM - height
        middle = x + step / 2
        hint = escape(bar.hint or f"{bar.label}: {bar.count}")
        parts.append(
            f'<g><title>{hint}</title><rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" '
            f'width="{max(step - 2, 1):.1f}" height="{height:.1f}" rx="2"/>'
        )
        if bar.count and step > 16:
            parts.append(f'<text class="count" x="{middle:.1f}" y="{y - 4:.1f}">{bar.count}</text>')
        if bar.label:
            shown = _short(bar.label, step)
            parts.append(f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - 7}">{escape(shown)}</text>')
        parts.append("</g>")
    return _figure(title, "".join(parts))


def histogram(title: str, values: Sequence[float]) -> Markup:
    """Draw how numbers are distributed, in 6 to 24 bins between the smallest and the largest."""
    known = np.asarray([v for v in values if math.isfinite(v)], float)
    if not known.size:
        return bars(title, ())
    whole = bool(np.all(known == np.round(known))) and np.ptp(known) <= 24
    if whole:
        low, high = int(known.min()), int(known.max())
        return bars(title, [Bar(str(v), int((known == v).sum())) for v in range(low, high + 1)])
    low, high = float(known.min()), float(known.max())
    if not _NARROWEST * max(abs(low), abs(high)) < high - low < math.inf:
        label = f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"
        return bars(title, [Bar(label, known.size)])  # no bins lie between these
    counts, edges = np.histogram(known, bins=int(np.clip(math.sqrt(known.size) * 1.5, 6, 24)))
    ticks = {0, len(counts) // 2, len(counts) - 1}
    data = [
        Bar(
            f"{(edges[i] + edges[i + 1]) / 2:.3g}" if i in ticks else "",
            int(count),
            f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {count}",
        )
        for i, count in enumerate(counts)
    ]
    return bars(title, data)


def _figure(title: str, body: str) -> Markup:
    line = f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _LEFT}" y1="{HEIGHT - 22}" y2="{HEIGHT - 22}"/>'
    return Markup(  # noqa: S704 (every text in the body is escaped above)
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{line}{body}</svg></figure>'
    )


def _short(label: str, step: float) -> str:
    room = max(int(step / 5.5), 3)
    # The tick of a histogram may spread over its neighbours, which have none.
    if len(label) <= room or _is_number(label):
        return label
    return label[: room - 1] + "…"


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
