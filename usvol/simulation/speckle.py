"""Speckle in beam space and its display: correlated Rayleigh noise, log compression."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], *, sigma: Sequence[float]) -> np.ndarray:
    """Draw real Gaussian noise of unit variance with Gaussian correlation ``sigma`` (samples, per axis)."""
    noise = rng.standard_normal(tuple(shape), dtype=np.float32)
    for axis, width in enumerate(sigma):
        if width > 0:
            noise = ndimage.gaussian_filter1d(noise, width, axis=axis, mode="wrap")
    return noise / max(float(noise.std()), 1e-12)


def complex_speckle(rng: np.random.Generator, shape: Sequence[int], *, sigma: Sequence[float]) -> np.ndarray:
    """Draw fully developed speckle: circular complex noise whose magnitude is Rayleigh with mean square 1.

    ``sigma`` is the width of the point spread function in samples, per axis (Wagner et al., IEEE Trans.
    Sonics Ultrason. 30(3), 1983).
    """
    real, imaginary = (smooth_noise(rng, shape, sigma=sigma) for _ in range(2))
    return ((real + 1j * imaginary) / np.sqrt(2)).astype(np.complex64)


def log_compress(
    amplitude: np.ndarray, *, gain_db: float, dynamic_range_db: float, gamma: float = 1.0
) -> np.ndarray:
    """Map echo amplitude to uint8: 0 dB after ``gain_db`` is white, ``-dynamic_range_db`` is black."""
    level_db = 20 * np.log10(np.maximum(amplitude, 1e-9)) + np.float32(gain_db)
    shown = np.clip(1 + level_db / np.float32(dynamic_range_db), 0, 1)
    return (255 * shown ** np.float32(gamma) + 0.5).astype(np.uint8)


def shifted(field: np.ndarray, first: float, *, count: int) -> np.ndarray:
    """Cut ``count`` samples from ``first`` (fractional) on out of the last axis of a wider field, wrapping.

    Speckle between two samples is rescaled, since averaging two of them would darken it.
    """
    start = math.floor(first)
    part = np.float32(first - start)
    wide = np.take(field, np.arange(start, start + count + 1), axis=-1, mode="wrap")
    mixed = (1 - part) * wide[..., :-1] + part * wide[..., 1:]
    return mixed / np.sqrt((1 - part) ** 2 + part**2 + 1.2 * part * (1 - part))


def renewing_speckle(
    rng: np.random.Generator, shape: tuple[int, int], *, sigma: Sequence[float]
) -> Iterator[np.ndarray]:
    """Yield speckle that follows no tissue and renews itself within a few frames: reverberation."""
    stock = complex_speckle(rng, (2 * shape[0], 2 * shape[1]), sigma=sigma)
    keep = np.float32(rng.uniform(0.55, 0.85))
    state = stock[: shape[0], : shape[1]].copy()
    while True:
        y, x = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
        fresh = stock[y : y + shape[0], x : x + shape[1]]
        state = keep * state + np.sqrt(1 - keep**2) * (fresh if rng.random() < 0.5 else fresh.conj())
        yield state


def uneven_contact(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw factors (depth, line): uneven contact, one end off the skin, a slope of gain."""
    contact_db = smooth_noise(rng, (1, shape[1]), sigma=(0, 9)) * rng.uniform(0.3, 1.6)
    if rng.random() < 0.35:
        edge = np.linspace(-1, 1, shape[1])[None] * (1 if rng.random() < 0.5 else -1)
        lost = 1 / (1 + np.exp((rng.uniform(0.55, 0.9) - edge) / 0.06))
        contact_db = contact_db - rng.uniform(10, 35) * lost
    gain_db = rng.uniform(-4, 4) * np.linspace(0, 1, shape[0])[:, None]
    return (10 ** ((contact_db + gain_db) / 20)).astype(np.float32)


def smooth_step(x: np.ndarray) -> np.ndarray:
    """Logistic step from 0 (x far below 0) to 1, float32."""
    return (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32)
