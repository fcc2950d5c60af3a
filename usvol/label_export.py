"""Write one label map for other programs: NIfTI, NRRD, MetaImage or DICOM Segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from usvol.errors import UnsupportedFormatError
from usvol.result import Labels

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".dcm")


def export_labels(
    labels: Labels,
    path: str | Path,
    *,
    source: Path | None = None,
    times_s: Sequence[float] | None = None,
    algorithm: str = "usvol",
) -> Path:
    """Write ``labels`` on their own grid in the format that the suffix of ``path`` names; return the path.

    NIfTI holds frames over time (``times_s``) as well; NRRD and MetaImage hold one. DICOM SEG refers to
    ``source``, the DICOM file or folder that the labels were made on, and names ``algorithm`` as the origin.

    Raises:
        UnsupportedFormatError: no such format, or it cannot hold these labels; says which one can.

    Example:
        >>> export_labels(finding, "placenta.nrrd")  # doctest: +SKIP
    """
    path = Path(path)
    name = path.name.lower()
    data = np.asarray(labels.data)
    if name.endswith((".nii.gz", ".nii")):
        from usvol.formats.nifti import write_nifti

        frames = data if len(data) > 1 else data[0]
        write_nifti(path, frames, grid=labels.grid, times_s=times_s if len(data) > 1 else None)
    elif name.endswith((".nrrd", ".mha")):
        from usvol.formats.metaimage import write_image

        if len(data) > 1:
            cause = f"{path.suffix} is written for one frame, and these labels have {len(data)}"
            raise UnsupportedFormatError(path, cause, "write .nii.gz, which holds all frames")
        write_image(path, data[0], grid=labels.grid)
    elif name.endswith(".dcm"):
        from usvol.formats.dicom_segmentation import write_segmentation

        if source is None:
            cause = "a DICOM segmentation refers to a DICOM scan, and this one was made in memory"
            raise UnsupportedFormatError(path, cause, "write .nii.gz or .nrrd")
        write_segmentation(path, labels, source=source, algorithm=algorithm)
    else:
        raise UnsupportedFormatError(path, "its suffix names no format", f"end it in {', '.join(SUFFIXES)}")
    return path
