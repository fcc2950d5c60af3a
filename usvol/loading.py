"""Load and probe files of any known format: by content, then by suffix."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TypeVar

from usvol.errors import EmptyFileError, EncryptedFileError, ReadError, UnknownFormatError
from usvol.formats import metaimage_header, still_series, video
from usvol.formats.dicom_series import is_series_path
from usvol.scan import Header, Scan, Selection

HEAD_BYTES = 4096
READS = (
    "DICOM, NIfTI, NRRD, MetaImage (mha, mhd, igs.mha), video (mp4, mov, avi, mpeg, mkv, webm, wmv, gif), "
    "stills (png, jpg, tif, bmp) and folders of numbered stills or DICOM slices"
)
SUFFIXES: dict[str, frozenset[str]] = {
    "nifti": frozenset({".nii", ".hdr", ".nii.gz"}),
    "metaimage": frozenset({".mha", ".mhd", ".nrrd", ".nhdr"}),
    "dicom": frozenset({".dcm", ".dicom", ".ima", ".vol"}),
    "video": video.SUFFIXES,
    "images": still_series.SUFFIXES,
}
# Cheapest first: a folder of stills must not cost an import of pydicom.
ORDER = ("images", "video", "nifti", "metaimage", "dicom")
SIDECAR_SUFFIXES = frozenset({
    ".csv", ".tsv", ".json", ".jsonl", ".txt", ".md", ".rst", ".xml", ".yaml", ".yml", ".toml", ".ini",
    ".cfg", ".log", ".pdf", ".html", ".htm", ".xls", ".xlsx", ".doc", ".docx", ".ppt", ".pptx", ".py",
    ".ipynb", ".sh", ".bat", ".db", ".sqlite", ".parquet", ".bib", ".tex", ".srt", ".lnk", ".url",
    ".sha256", ".md5",
})  # fmt: skip
SIDECAR_NAMES = frozenset({"license", "licence", "readme", "changelog", "notice", "dicomdir", "thumbs.db"})
_ENDINGS = sorted(
    {s for suffixes in SUFFIXES.values() for s in suffixes} | {".igs.mha"}, key=len, reverse=True
)
LABEL_ENDING = re.compile(r"[_-](labels?|seg|segmentation|mask)$", re.IGNORECASE)  # NAME_labels beside NAME
COMPANIONS = {".raw": (".mhd", ".nhdr"), ".zraw": (".mhd",), ".img": (".hdr",), ".gz": (".nhdr",)}
_NAME_BYTES, _NAME_KEPT = 255, 40  # most bytes of a file name; characters kept of a longer one
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # half a character that stands for no byte of a name
# Other files by their first bytes, so that the error can name them.
OTHERS = (
    (b"PK\x03\x04", "a ZIP archive (or an Office document)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
# The coder's id (7zFormat.txt, "7zAES"), which a compressed but open list of files hides.
SEVEN_ZIP_AES = bytes.fromhex("06f10701")
ENCRYPTED = (b"Salted__", b"-----BEGIN PGP MESSAGE", b"age-encryption.org", b"LUKS\xba\xbe")

_Read = TypeVar("_Read", Scan, Header)


class FileClass(StrEnum):
    """What a file is to a batch run."""

    SCAN = "scan"
    SIDECAR = "sidecar"
    UNKNOWN = "unknown"


def load(path: str | Path, *, selection: Selection | None = None, allow_truncated: bool = False) -> Scan:
    """Read a file or folder into a ``Scan``, its format told by content, then by suffix.

    Args:
        path: file or folder, or one of several slice series in a folder (``folder/series-1a2b3c4d``: the
            error on reading such a folder names them).
        selection: which frames are needed, and how large; None for all as stored.
        allow_truncated: return what precedes a cut or damaged place of a clip, with a warning.

    Raises:
        ReadError: its subclass says what is wrong with the file and what to do.

    Example:
        >>> scan = load("clip.mp4", selection=Selection(max_frames=32))  # doctest: +SKIP
    """
    path = Path(path)
    module = _reader(path)
    with _plain(path) as plain:
        if allow_truncated and "allow_truncated" in inspect.signature(module.read).parameters:
            return _placed(module.read(plain, selection, allow_truncated=True), plain, path)
        return _placed(module.read(plain, selection), plain, path)


def probe(path: str | Path) -> Header:
    """Read the header of a file or folder without decoding samples (and without importing torch).

    Raises:
        ReadError: as ``load``.

    Example:
        >>> probe("volume.nii.gz").grid.spacing_mm  # doctest: +SKIP
    """
    path = Path(path)
    module = _reader(path)
    with _plain(path) as plain:
        return _placed(module.probe(plain), plain, path)


def classify(path: str | Path) -> FileClass:
    """Tell cheaply whether a batch run should read ``path``, ignore it as a sidecar, or report it as unknown.

    A file whose suffix promises a scan is a ``SCAN`` even if it is damaged, so that it is accounted for. A
    folder is a ``SCAN`` where it is one (numbered stills, DICOM slices), else ``UNKNOWN``: look inside.
    """
    path = Path(path)
    if path.is_dir():
        return FileClass.SCAN if scans_in(path) else FileClass.UNKNOWN
    if is_series_path(path):
        return FileClass.SCAN
    if path.name.startswith(".") or path.name.lower() in SIDECAR_NAMES or _is_companion(path):
        return FileClass.SIDECAR
    head = _head(path)
    if _by_content(head) or _by_suffix(path):
        return FileClass.SCAN
    if path.suffix.lower() in SIDECAR_SUFFIXES or path.stem.lower() in SIDECAR_NAMES:
        return FileClass.SIDECAR
    return FileClass.SCAN if _sniffing_format(path, head) else FileClass.UNKNOWN


def scans_in(folder: Path) -> tuple[Path, ...]:
    """Return the folder where it is one scan, or a path for each slice series where it holds several.

    ``load`` takes each. A mere collection of scans gives none.
    """
    name = _sniffing_format(folder, b"")
    module = _module(name) if name else None
    if module is None:
        return ()
    try:
        module.probe(folder)
    except ReadError:
        # Stills or slices of which one is missing or damaged are a scan that fails, not so many images.
        if name == "images":
            return (folder,)
        if name != "dicom":
            return ()
        return tuple(module.series(folder)) or ((folder,) if module.is_series(folder) else ())
    return (folder,)


def is_there(path: Path) -> bool:
    """Tell whether a path leads to a file, a folder, or one slice series of a folder."""
    return path.exists() or is_series_path(path)


def name_of(path: Path) -> str:
    """Return the name of a file without the ending of its format, which may have two parts (``.nii.gz``)."""
    lower = path.name.lower()
    ending = next((e for e in _ENDINGS if lower.endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def printable(text: str | Path) -> str:
    """Return ``text`` as it can be written: what is not UTF-8 in the name of a file becomes U+FFFD."""
    known = _NO_BYTE.sub("\ufffd", str(text))
    return known.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def parts(path: Path) -> tuple[Path, ...]:
    """Return the files that a scan is read from: a series in a folder, a header and its samples, one file."""
    if is_series_path(path) and (module := _module("dicom")):
        return tuple(module.parts(path))
    if not path.is_dir():
        return (path, *_detached(path))
    name = _sniffing_format(path, b"")
    if name == "images" and (series := still_series.find_series(path)):
        return series.paths
    if name == "dicom" and (module := _module(name)):
        return tuple(module.parts(path))
    return tuple(sorted(file for file in path.iterdir() if file.is_file()))


def _detached(path: Path) -> Iterator[Path]:
    """Yield the files beside a header that hold its samples."""
    if other := {".hdr": ".img", ".img": ".hdr"}.get(path.suffix.lower()):
        place = path.with_suffix(other).name
    elif path.name.lower().endswith(tuple(SUFFIXES["metaimage"])):
        try:
            fields = metaimage_header.read_header(path).fields
        except ReadError:
            return  # no such header, whatever its name
        place = fields.get("ElementDataFile") or fields.get("data file") or fields.get("datafile", "LOCAL")
    else:
        return
    if place.upper().startswith("LIST") or "%" in place:
        yield from sorted(file for file in path.parent.iterdir() if file.is_file() and file != path)
    elif (path.parent / place).is_file():
        yield path.parent / place


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """Give a path that is UTF-8, a link if need be: PyAV takes no other, SimpleITK ends the process."""
    if printable(path) == str(path):
        yield path
        return
    if is_series_path(path):
        with _plain(path.parent) as folder:
            yield folder / path.name
        return
    with TemporaryDirectory(prefix="usvol-") as folder:
        for part in (path,) if path.is_dir() else parts(path):
            Path(folder, _link_name(part)).symlink_to(part.absolute())
        yield Path(folder, _link_name(path))


def _link_name(path: Path) -> str:
    """Name a link in UTF-8: what replaces a byte takes three, and no name may have more than 255."""
    name = printable(path.name)
    if len(name.encode()) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return f"{name[:_NAME_KEPT]}-{digest}{printable(path.suffix)[:_NAME_KEPT]}"


def _placed(found: _Read, plain: Path, path: Path) -> _Read:
    """Return what was read by a plain path as read from the path that was given."""
    if plain == path or found.source.path is None:
        return found
    source = dataclasses.replace(found.source, path=path / found.source.path.relative_to(plain))
    return dataclasses.replace(found, source=source)


def _reader(path: Path) -> ModuleType:
    try:
        if is_series_path(path) and (module := _module("dicom")):
            return module
        if not path.exists():
            raise _not_there(path)
        if path.is_dir():
            return _folder_reader(path)
    except OSError as error:
        raise _shut(path, error) from error
    head = _head(path)
    if not head:
        raise EmptyFileError(path, "it has no bytes", "copy or export it again")
    _refuse_encrypted(path, head)
    name = _by_content(head)
    if name is None:
        other = _other_kind(head)
        if other:
            way = "unpack it and give the scans inside" if "archive" in other else f"give one of: {READS}"
            raise UnknownFormatError(path, f"it is {other}, not a scan", way)
        name = _sniffing_format(path, head) or _by_suffix(path)
    module = _module(name) if name else None
    if module is None and path.suffix.lower() in SIDECAR_SUFFIXES:
        raise UnknownFormatError(path, "it is a table, text or document, not a scan", f"give one of: {READS}")
    if module is None:
        raise UnknownFormatError(path, "no reader recognises its content", f"give one of: {READS}")
    if _is_text(head) and not getattr(module, "sniff", lambda *_: True)(path, head):
        cause = f"it is a text file under the name of a {name} file"
        raise UnknownFormatError(path, cause, "give the scan itself")
    return module


def _folder_reader(path: Path) -> ModuleType:
    name = _sniffing_format(path, b"")
    module = _module(name) if name else None
    if module is None:
        cause = "this folder is neither one series of numbered stills nor of DICOM slices"
        raise UnknownFormatError(path, cause, "name one file in it, or go over the folder with: usvol run")
    return module


def _sniffing_format(path: Path, head: bytes) -> str | None:
    by_suffix = _by_suffix(path)
    for name in sorted(ORDER, key=lambda n: n != by_suffix):
        module = _module(name)
        if module is not None and module.sniff(path, head):
            return name
    return None


def _module(name: str) -> ModuleType | None:
    full = f"usvol.formats.{name}"
    return importlib.import_module(full) if importlib.util.find_spec(full) else None


def _by_suffix(path: Path) -> str | None:
    lower = path.name.lower()
    for name, suffixes in SUFFIXES.items():
        if lower.endswith(tuple(suffixes)):
            return name
    return None


def _by_content(head: bytes) -> str | None:
    """Name the format by its signature; None where only its own module can tell."""
    if head[:2] == b"\x1f\x8b":
        return _by_content(_inflate(head))
    if head[128:132] == b"DICM" or head[:9] == b"KRETZFILE":
        return "dicom"
    if head[344:348] in {b"n+1\0", b"ni1\0"} or head[4:8] in {b"n+2\0", b"ni2\0"}:
        return "nifti"
    if head[:4] == b"NRRD" or _is_metaimage(head):
        return "metaimage"
    if head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] == b"\xff\xd8\xff":
        return "images"
    if head[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
        return "images"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "images"
    return "video" if video.sniff(Path(), head) else None


def _is_metaimage(head: bytes) -> bool:
    keys = (b"ObjectType", b"NDims", b"DimSize", b"ElementType")
    return head[:256].lstrip().startswith(keys) and b"=" in head[:256]


def _inflate(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _refuse_encrypted(path: Path, head: bytes) -> None:
    zip_locked = head[:4] == b"PK\x03\x04" and head[6:7] and head[6] & 1
    office_locked = head[:4] == b"\xd0\xcf\x11\xe0" and "EncryptedPackage".encode("utf-16-le") in _ends(path)
    pdf_locked = head[:4] == b"%PDF" and b"/Encrypt" in _ends(path)
    seven_zip_locked = head[:6] == OTHERS[1][0] and SEVEN_ZIP_AES in _ends(path)
    if zip_locked or office_locked or pdf_locked or seven_zip_locked or head.startswith(ENCRYPTED):
        cause = f"it is {_other_kind(head) or 'a file'} protected by a password"
        raise EncryptedFileError(path, cause, "decrypt it and give the scan inside")


def _other_kind(head: bytes) -> str | None:
    return next((kind for magic, kind in OTHERS if head.startswith(magic)), None)


def _ends(path: Path, length: int = 1 << 16) -> bytes:
    with path.open("rb") as stream:
        first = stream.read(length)
        stream.seek(max(0, path.stat().st_size - length))
        return first + stream.read(length)


def _is_text(head: bytes) -> bool:
    return bool(head) and not any(byte < 9 for byte in head[:512])


def _is_companion(path: Path) -> bool:
    headers = COMPANIONS.get(path.suffix.lower(), ())
    return any(path.with_suffix(suffix).exists() for suffix in headers)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError as error:
        raise _shut(path, error) from error


def _shut(path: Path, error: OSError) -> ReadError:
    remedy = "check its permissions" if isinstance(error, PermissionError) else "check path and disk"
    return ReadError(path, f"it cannot be opened ({error.strerror})", remedy)


def _not_there(path: Path) -> ReadError:
    if path.is_symlink():
        return ReadError(path, "there is no such file: the link leads nowhere", "bring back its target")
    return ReadError(path, "there is no such file or folder", _near_names(path))


def _near_names(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"check the path; there is no folder {str(parent)!r} either"
    near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=3)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "check the path"
