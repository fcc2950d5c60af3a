from __future__ import annotations

import threading
import warnings

from usvol.formats.quiet import unwarned


def test_threads_do_not_undo_the_silence_of_each_other():
    """One leaves while the other is still in; both orders of entering and leaving."""
    for first_out in (0, 1):
        inside, leave = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

        def read(number: int, inside=inside, leave=leave) -> None:
            with unwarned():
                inside[number].set()
                leave[number].wait(10)
                warnings.warn("Doe^Jane", stacklevel=1)

        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            before = list(warnings.filters)
            threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
            for number, thread in enumerate(threads):
                thread.start()
                inside[number].wait(10)
            for number in (first_out, 1 - first_out):
                leave[number].set()
                threads[number].join()
            assert not shown
            assert list(warnings.filters) == before
            warnings.warn("heard again", stacklevel=1)
        assert [str(one.message) for one in shown] == ["heard again"]
