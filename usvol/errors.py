"""Errors a user can act on.

Every message says what came, what is needed and what to do::

    UsvolError
    ├── ReadError                 a file cannot be turned into a Scan
    │   ├── UnknownFormatError    no reader recognises the content
    │   ├── UnsupportedFormatError  recognised, but closed or proprietary: says what to export instead
    │   ├── TruncatedFileError    the file ends before its content does
    │   ├── CorruptFileError      header or samples contradict themselves
    │   ├── EncryptedFileError    password-protected
    │   ├── EmptyFileError        no bytes, or no frames
    │   └── TooLargeError         the header asks for more memory than allowed
    ├── UncalibratedError         a length in mm or mL was asked of a scan without scale
    ├── UnknownTimeError          a duration was asked of a cine without frame times
    ├── KindError                 the task does not accept this kind of scan
    ├── TaskError                 no such task, or it cannot be built
    ├── ConfigError               a setting is unknown or out of range
    ├── WeightsError              weights missing or their checksum is wrong
    ├── DatasetError              a data set is incomplete or not what its adapter expects
    ├── LeakageError              the same patient on both sides of a split
    ├── CancelledError            the user stopped the run
    └── MissingExtraError         an optional dependency is not installed
"""

from __future__ import annotations

from pathlib import Path


class UsvolError(Exception):
    """Any error whose message is meant for the user."""


class ReadError(UsvolError):
    """A file that cannot be read: names the file, the cause and the way out.

    Example:
        >>> print(ReadError("a.mp4", "it ends in the middle of frame 12", "copy it again"))
        a.mp4: it ends in the middle of frame 12. To fix: copy it again.
    """

    def __init__(self, path: str | Path, cause: str, remedy: str) -> None:
        self.path = Path(path)
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{self.path.name}: {cause}. To fix: {remedy}.")


class UnknownFormatError(ReadError):
    """No reader recognises the content."""


class UnsupportedFormatError(ReadError):
    """A recognised but closed format."""


class TruncatedFileError(ReadError):
    """The file ends before its content does."""


class CorruptFileError(ReadError):
    """Header or samples contradict themselves."""


class EncryptedFileError(ReadError):
    """The file is password-protected."""


class EmptyFileError(ReadError):
    """No bytes, or no frames."""


class TooLargeError(ReadError):
    """The header asks for more memory than allowed."""


class UncalibratedError(UsvolError):
    """A length, area or volume was asked of a scan without a trusted scale."""

    def __init__(self, quantity: str, reason: str) -> None:
        self.quantity, self.reason = quantity, reason
        super().__init__(
            f"{quantity} needs a calibrated scan, and this one is not: {reason}. "
            "State the sample spacing with --spacing (or Scan.with_spacing) if you know it."
        )


class UnknownTimeError(UsvolError):
    """A duration or rate was asked of a cine whose frame times are unknown."""

    def __init__(self, quantity: str) -> None:
        super().__init__(
            f"{quantity} needs frame times, and this cine has none. "
            "State the frame rate with --fps (or Scan.with_fps) if you know it."
        )


class KindError(UsvolError):
    """The task does not accept this kind of scan."""


class TaskError(UsvolError):
    """No such task, or it cannot be built."""


class ConfigError(UsvolError):
    """A setting is unknown or out of range."""


class WeightsError(UsvolError):
    """Weights are missing, or their checksum is wrong."""


class DatasetError(UsvolError):
    """A data set is incomplete or not what its adapter expects."""


class LeakageError(UsvolError):
    """The same patient stands on both sides of a split."""


class ProcessDiedError(ReadError):
    """The process died, more than once, while it worked on this input."""


class DiskFullError(UsvolError):
    """There is no room left to write to; nothing is wrong with the input."""

    def __init__(self, place: Path) -> None:
        super().__init__(
            f"{place}: no space left. What is finished is kept: make room, then go on with --resume."
        )


class CancelledError(UsvolError):
    """The user stopped the run; nothing is wrong with its input."""

    def __init__(self) -> None:
        super().__init__("Cancelled. Nothing was kept of this run; start it again to have its results.")


class MissingExtraError(UsvolError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs {package}. Install it with: pip install 'usvol[{extra}]'.")
