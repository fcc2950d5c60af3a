"""Run items on this machine: threads load, prepare and write while the network runs."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from usvol.batch.discovery import Item
from usvol.batch.item import Stated, process
from usvol.batch.outcome import Outcome
from usvol.task import Task


def execute(
    task: Task,
    items: Iterable[Item],
    *,
    out: Path,
    stated: Stated,
    workers: int,
    started: Callable[[Item], None],
) -> Generator[Outcome]:
    """Yield one outcome per item, in the order of ``items``, working on ``workers`` at a time.

    ``started`` is called, from the worker's thread, when it begins with an item. Closing
    the iterator (or an exception in the caller) drops what waits and lets running items finish.
    """
    turn = threading.Lock()

    def work(item: Item) -> Outcome:
        started(item)
        return process(task, item, out=out, stated=stated, turn=turn)

    waiting: deque[Future[Outcome]] = deque()
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="usvol")
    try:
        while True:
            # A slow item at the head must not starve the workers; a bound keeps memory flat.
            while len(waiting) < 3 * workers and (item := next(source, None)) is not None:
                # In the caller's context, so that who supervises it can stop the items too.
                waiting.append(pool.submit(contextvars.copy_context().run, work, item))
            if not waiting:
                return
            yield waiting[0].result()
            waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
