"""Draw the panels under a preview: curves over time and class probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from usvol.result import Curve, Scores

Colour = tuple[int, int, int]

PAPER: Colour = (16, 18, 22)
INK: Colour = (226, 230, 236)
FAINT: Colour = (110, 118, 130)
ACCENT: Colour = (92, 200, 255)
# Okabe-Ito, safe for colour-blind readers, readable on grey tissue.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
# From calm to alarming, for ordered classes.
RAMP: tuple[Colour, ...] = ((68, 160, 120), (150, 190, 90), (240, 190, 70), (232, 120, 70), (200, 60, 80))

_SCALE = 2  # drawn larger, then shrunk: smooth lines without an anti-aliasing library


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, so that pictures are the same on every machine."""
    return ImageFont.load_default(size=size)


def scores_panel(scores: Scores, width: int) -> Image.Image:
    """Draw a bar of class probabilities with the decision above it; 38 px high."""
    image = Image.new("RGB", (width * _SCALE, 38 * _SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    pad, top, bottom = 6 * _SCALE, 22 * _SCALE, 32 * _SCALE
    probability = dict(zip(scores.classes, scores.probabilities, strict=True)).get(scores.decision)
    title = f"{scores.name.replace('_', ' ')}: {scores.decision}"
    draw.text((pad, 4 * _SCALE), title, fill=INK, font=font(11 * _SCALE))
    if probability is not None and math.isfinite(probability):
        text = f"p {probability:.2f}"
        length = draw.textlength(text, font=font(11 * _SCALE))
        draw.text((image.width - pad - length, 4 * _SCALE), text, fill=FAINT, font=font(11 * _SCALE))
    left, span = float(pad), image.width - 2 * pad
    for index, (name, share) in enumerate(zip(scores.classes, scores.probabilities, strict=True)):
        right = left + span * (share if math.isfinite(share) else 0.0)
        if right - left >= 1:
            draw.rectangle((left, top, right - 1, bottom), fill=class_colour(index, len(scores.classes)))
        if name == scores.decision:
            draw.line((left, bottom + 3, max(right - 1, left + 2), bottom + 3), fill=INK, width=_SCALE)
        if right - left > 16 * _SCALE and len(name) <= 3:
            draw.text(((left + right) / 2 - 6, top - 1), name, fill=PAPER, font=font(10 * _SCALE))
        left = right
    return image.resize((width, 38), Image.Resampling.LANCZOS)


def curve_panel(curve: Curve, width: int) -> Image.Image:
    """Draw a curve with its uncertainty band and range; 54 px high."""
    image = Image.new("RGB", (width * _SCALE, 54 * _SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    known = [v for v in (*curve.values, *(curve.low or ()), *(curve.high or ())) if math.isfinite(v)]
    title = curve.name.replace("_", " ") + (f" [{curve.unit}]" if curve.unit else "")
    draw.text((6 * _SCALE, 3 * _SCALE), title, fill=FAINT, font=font(10 * _SCALE))
    if known:
        low, high = min(known), max(known)
        text = f"{low:.3g} to {high:.3g}"
        length = draw.textlength(text, font=font(10 * _SCALE))
        draw.text((image.width - 6 * _SCALE - length, 3 * _SCALE), text, fill=FAINT, font=font(10 * _SCALE))
        if curve.low is not None and curve.high is not None:
            band = [*_points(curve, curve.low, image.size), *reversed(_points(curve, curve.high, image.size))]
            if len(band) > 2:
                draw.polygon(band, fill=(30, 52, 66))
        points = _points(curve, curve.values, image.size)
        if len(points) > 1:
            draw.line(points, fill=ACCENT, width=_SCALE + 1, joint="curve")
        for event in curve.events:
            at = marker_x(curve, curve.frame_indices[event.index], width=width) * _SCALE
            draw.line((at, 18 * _SCALE, at, image.height), fill=FAINT, width=1)
            draw.text((at + 3, 17 * _SCALE), event.name, fill=INK, font=font(9 * _SCALE))
    return image.resize((width, 54), Image.Resampling.LANCZOS)


def marker_x(curve: Curve, frame: int, *, width: int) -> float:
    """Return where file frame ``frame`` lies along a curve panel of ``width`` pixels."""
    first, last = curve.frame_indices[0], curve.frame_indices[-1]
    share = (frame - first) / (last - first) if last > first else 0.5
    return 6 + min(max(share, 0.0), 1.0) * (width - 12)


def class_colour(index: int, count: int) -> Colour:
    """Return the colour of class ``index`` of ``count``: of a ramp where they are grades.

    Two classes are none: what is present, found or sure is often good news.
    """
    if count == 2:
        return (FAINT, ACCENT)[index]
    place = index / max(count - 1, 1) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    share = place - low
    r, g, b = (round(a + (c - a) * share) for a, c in zip(RAMP[low], RAMP[low + 1], strict=True))
    return (r, g, b)


def _points(curve: Curve, values: Sequence[float], size: tuple[int, int]) -> list[tuple[float, float]]:
    known = [v for v in (*curve.values, *(curve.low or ()), *(curve.high or ())) if math.isfinite(v)]
    low, span = min(known), (max(known) - min(known)) or 1.0
    top, bottom = 20 * _SCALE, size[1] - 6 * _SCALE
    return [
        (
            marker_x(curve, frame, width=size[0] // _SCALE) * _SCALE,
            bottom - (value - low) / span * (bottom - top),
        )
        for frame, value in zip(curve.frame_indices, values, strict=True)
        if math.isfinite(value)
    ]
