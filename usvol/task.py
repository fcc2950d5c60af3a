"""What a task is: five steps that ``pipeline.run`` chains, and a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from usvol.result import Finding, Flag, Measurement
from usvol.scan import Kind, Scan, Selection

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Task(Protocol):
    """One method, ready to run on a device.

    A task module exports ``Config`` (a pydantic model, the only place of defaults) and
    ``build(config, device) -> Task``; its file name is the task's name and the first line of its
    docstring its description. It may also export ``TRAINING`` (see ``usvol.training.recipe``).

    A task whose findings follow from one another, such as a surface from a mask, may have
    ``follow(findings, changed) -> findings``: make those anew that follow from the ones whose positions are
    in ``changed``, after a correction by hand (``pipeline.remeasure``).

    Attributes:
        accepts: kinds of scan it takes.
        selection: which frames, and how large, the loader should decode for it.
        provenance: facts about the model for the result, such as weights name and sha256.
    """

    accepts: frozenset[Kind]
    selection: Selection
    provenance: dict[str, Any]

    def preprocess(self, scan: Scan) -> Scan:
        """Turn a canonical scan into network input."""
        ...

    def infer(self, scan: Scan) -> Tensor | tuple[Tensor, ...]:
        """Run the network."""
        ...

    def postprocess(self, raw: Any, scan: Scan) -> tuple[Finding, ...]:
        """Turn network output into findings on the grid of ``scan`` (the preprocessed one)."""
        ...

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        """Compute numbers from exactly the findings that are written; ``scan`` is as loaded."""
        ...

    def flags(self, raw: Any, scan: Scan) -> tuple[Flag, ...]:
        """Report quality problems of the input and of the network's answer."""
        ...
