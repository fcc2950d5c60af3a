"""Note the newest result on the layers of its scan: whichever of them are saved hold the numbers shown."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from usvol.result import Finding, Result
from usvol_napari.layers import Key, place_of
from usvol_napari.widgets.shown import of_scan

if TYPE_CHECKING:
    from usvol_napari.widgets.session import Session


def keep_notes(viewer: Any, session: Session) -> None:
    """Note results as they come, and at once what was corrected but is not measured yet."""
    there = weakref.ref(viewer)

    def note(change: Callable[[dict[Key, Any]], dict[Key, Any]]) -> None:
        for layer in getattr(there(), "layers", ()):
            if _belongs(layer, session):
                layer.metadata = {**layer.metadata, **change(layer.metadata)}

    session.measured.connect(lambda result: note(lambda notes: _measured(notes, result)))
    session.changed.connect(lambda: note(lambda _notes: {Key.CORRECTED: session.correction}))


def _belongs(layer: Any, session: Session) -> bool:
    """Tell whether a layer shows the scan that was analysed, or a finding of this analysis."""
    analysis = session.analysis
    if analysis is None or not of_scan(layer, analysis.shown):
        return False
    known = (analysis.result, session.result, session.result_before)
    return Key.FINDING not in layer.metadata or any(layer.metadata.get(Key.RESULT) is one for one in known)


def _measured(notes: dict[Key, Any], result: Result) -> dict[Key, Any]:
    new = {Key.RESULT: result, Key.CORRECTED: None}
    finding: Finding | None = notes.get(Key.FINDING)
    if finding is not None:
        place = place_of(finding, notes[Key.RESULT], result)
        new[Key.FINDING] = finding if place is None else result.findings[place]
    return new
