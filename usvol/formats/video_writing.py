"""Write clips for previews, the demo and tests: mp4 (H.264), avi (MJPEG), mkv (FFV1, lossless) and gif."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

CODECS = {".mp4": ("libx264", "mpeg4"), ".mov": ("libx264", "mpeg4"), ".avi": ("mjpeg",), ".mkv": ("ffv1",)}
PIXEL_FORMATS = {"libx264": "yuv420p", "mpeg4": "yuv420p", "mjpeg": "yuvj420p", "ffv1": "bgr0"}
CODEC_OPTIONS = {"libx264": {"crf": "16", "preset": "veryfast"}, "mjpeg": {"qmin": "2", "qmax": "4"}}


def write_video(path: str | Path, frames: np.ndarray, *, fps: float) -> Path:
    """Write uint8 ``frames``, ``t y x`` or ``t y x c`` (c = 1 or 3, RGB), at ``fps`` frames per second.

    The suffix chooses the codec: .mp4 and .mov H.264, .avi MJPEG, .mkv FFV1 (lossless). Odd sizes are
    padded by one black row or column where the codec needs even ones.

    Raises:
        ValueError: unknown suffix, wrong shape or dtype, or a rate that is not positive.

    Example:
        >>> write_video("beat.mp4", np.zeros((10, 64, 64), np.uint8), fps=25)  # doctest: +SKIP
    """
    import av

    path = Path(path)
    if path.suffix.lower() not in CODECS:
        raise ValueError(f"cannot write {path.suffix!r} videos; use one of {', '.join(CODECS)}")
    if not fps > 0:
        raise ValueError(f"the frame rate must be positive, got {fps}")
    colour = _as_rgb(frames)
    codec = next(c for c in CODECS[path.suffix.lower()] if c in av.codecs_available)
    if codec != "ffv1":
        colour = np.pad(colour, ((0, 0), (0, colour.shape[1] % 2), (0, colour.shape[2] % 2), (0, 0)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=Fraction(fps).limit_denominator(1001), options=CODEC_OPTIONS.get(codec, {})
        )
        stream.height, stream.width = colour.shape[1:3]
        stream.pix_fmt = PIXEL_FORMATS[codec]
        for image in colour:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_gif(path: str | Path, frames: np.ndarray, *, fps: float) -> Path:
    """Write uint8 ``frames``, ``t y x`` or ``t y x c``, as an endless GIF (delays: multiples of 10 ms)."""
    from PIL import Image

    images = [Image.fromarray(f if frames.ndim == 3 else np.squeeze(f)) for f in frames]
    delay_ms = max(20, round(100 / fps) * 10)
    images[0].save(path, save_all=True, append_images=images[1:], duration=delay_ms, loop=0, format="GIF")
    return Path(path)


def _as_rgb(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or not len(frames):
        raise ValueError(f"frames must be uint8 't y x' or 't y x c', got {frames.dtype} {frames.shape}")
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.shape[-1] not in (1, 3):
        raise ValueError(f"frames must have 1 or 3 channels, got {frames.shape[-1]}")
    return np.broadcast_to(frames, (*frames.shape[:3], 3))
