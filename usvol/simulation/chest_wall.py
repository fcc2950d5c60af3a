"""Chest wall in beam space: skin, fat, muscle and fasciae as speckle; ribs as echo and shadow."""

from __future__ import annotations

import numpy as np

from usvol.simulation.speckle import complex_speckle, smooth_noise, smooth_step


def tissue(
    rng: np.random.Generator, *, depths_mm: np.ndarray, lines: int, pleura_mm: float, contrast: float
) -> np.ndarray:
    """Draw complex echoes (depth, line) of a wall that ends at ``pleura_mm``, and continues below it.

    ``contrast`` is that of the speckle: 1 fully developed, less with compounding.
    """
    step_mm, depth = float(depths_mm[1] - depths_mm[0]), depths_mm[:, None]
    shape = (len(depths_mm), lines)
    speckle = complex_speckle(rng, shape, sigma=(0.28 / step_mm + 0.4, 1.3))
    speckle *= (np.abs(speckle) + 1e-6) ** (0.5 * (contrast - 1))
    level_db = np.full(shape, rng.uniform(-28, -20), np.float32)
    fibres = smooth_noise(rng, shape, sigma=(0.35 / step_mm + 0.3, rng.uniform(8, 20)))
    level_db += fibres * rng.uniform(3.5, 7.0) + 2 * smooth_noise(rng, shape, sigma=(4 / step_mm, 14))
    muscle = rng.uniform(0.4, 0.75)
    level_db -= rng.uniform(0, 5) * smooth_step((depth / pleura_mm - muscle) * 20)
    bend = smooth_noise(rng, (1, lines), sigma=(0, 18.0)) * rng.uniform(0.3, 1.2)
    for _ in range(int(rng.integers(3, 8))):  # fasciae
        at = rng.uniform(0.1, 0.97) * pleura_mm + bend + 0.4 * smooth_noise(rng, (1, lines), sigma=(0, 10))
        strength_db = rng.uniform(6, 15) + 5 * smooth_noise(rng, (1, lines), sigma=(0, 7))
        level_db += np.clip(strength_db, 0, 18) * np.exp(-(((depth - at) / rng.uniform(0.2, 0.45)) ** 2))
    level_db += rng.uniform(6, 13) * np.exp(-depth / rng.uniform(1.0, 3.0))  # skin
    return (speckle * 10 ** (level_db / 20)).astype(np.complex64)


def ribs(
    rng: np.random.Generator,
    *,
    count: int,
    depths_mm: np.ndarray,
    lateral_mm: np.ndarray,
    pleura_mm: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw up to three ribs: transmission (1 free, near 0 in a shadow) and echo, each (depth, line)."""
    step_mm, depth = float(depths_mm[1] - depths_mm[0]), depths_mm[:, None]
    shade = np.ones((len(depths_mm), len(lateral_mm)), np.float32)
    echo = np.zeros_like(shade)
    sparkle = np.abs(complex_speckle(rng, shade.shape, sigma=(0.4 / step_mm, 2.0)))
    alone = float(rng.uniform(-0.85, 0.85))
    places = ([], [alone], [-0.62, 0.62], [-0.85, 0.0, 0.85])[count]
    offset = float(rng.uniform(-0.2, 0.2)) if count > 1 else 0.0
    for place in places:
        at_mm, half_width_mm = (place + offset) * float(lateral_mm[-1]), rng.uniform(4, 7.5)
        across = (lateral_mm - at_mm) / half_width_mm
        surface = float(np.interp(at_mm, lateral_mm, pleura_mm)) - rng.uniform(3, 7) + 2.2 * across**2
        covered = smooth_step((1 - np.abs(across)) * half_width_mm / rng.uniform(0.7, 1.8))
        behind = smooth_step((depth - surface) / 0.5)
        shade *= 1 - covered * behind * np.float32(rng.uniform(0.9, 0.99))
        face = np.exp(-(((depth - surface) / 0.7) ** 2)) * covered
        echo += (face * sparkle * 10 ** (rng.uniform(-22, -8) / 20)).astype(np.float32)
    return shade, echo
