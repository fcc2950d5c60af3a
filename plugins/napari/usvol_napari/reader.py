"""Read whatever usvol reads into napari: files, folders of slices or stills, results and whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from napari.utils.notifications import show_warning

from usvol.loading import FileClass, classify, is_there, scans_in

LayerTuples = list[tuple]


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], LayerTuples] | None:
    """Return ``read_layers`` if usvol may know what ``path`` is (told by a few bytes), else None."""
    paths = [path] if isinstance(path, str) else list(path)
    return read_layers if paths and all(_may_read(Path(one)) for one in paths) else None


def read_layers(path: str | Sequence[str]) -> LayerTuples:
    """Read one path, or several one after the other, and warn of what the user must know of them.

    Raises:
        ReadError: its subclass says what is wrong with the file and what to do; napari shows its message.
    """
    paths = [path] if isinstance(path, str) else path
    return [layer for one in paths for layer in open_layers(one)]


def open_layers(path: str | Path) -> LayerTuples:
    """Read a scan, a result or a batch of results into layers; long cines are decoded when looked at.

    Of a folder with several DICOM series each is a scan.

    Raises:
        ReadError: as ``usvol.load``.
    """
    path = Path(path)
    if is_item(path) or is_batch(path):
        from usvol_napari import result_folder

        layers, said = (result_folder.item_layers if is_item(path) else result_folder.batch_layers)(path)
    else:
        scans = scans_in(path) if path.is_dir() else ()
        opened = [open_scan(scan) for scan in scans or (path,)]
        layers = [layer for shown, _ in opened for layer in shown]
        said = [text for _, texts in opened for text in texts]
    for text in dict.fromkeys(said):
        show_warning(text)
    return layers


def open_scan(path: Path) -> tuple[LayerTuples, list[str]]:
    """Return the layers of a scan, and what the user must know of it."""
    from usvol.frame_access import open_frames
    from usvol.loading import load
    from usvol_napari.frame_layers import lazy_layers
    from usvol_napari.layers import notices, scan_layers

    frames = open_frames(path)
    if frames is not None:
        header = frames.header
        said = notices(header.source, grid=header.grid, kind=header.kind, timed=header.times_s is not None)
        return lazy_layers(frames), list(said)
    scan = load(path)
    said = notices(scan.source, grid=scan.grid, kind=scan.kind, timed=scan.times_s is not None)
    return scan_layers(scan), list(said)


def is_item(folder: Path) -> bool:
    """Tell cheaply whether a folder is one written result."""
    return (folder / "result.json").is_file()


def is_batch(folder: Path) -> bool:
    """Tell cheaply whether a folder is the output of ``usvol run``."""
    return (folder / "run.json").is_file() and (folder / "items").is_dir()


def _may_read(path: Path) -> bool:
    if not is_there(path):
        return False
    return is_item(path) or is_batch(path) or classify(path) is FileClass.SCAN
