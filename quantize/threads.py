"""Threads that work side by side, and their results in the order of the work.

Work is handed out a little ahead, so that no thread waits and little is lost when it ends early.
It knows nothing of what is done.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from dotscli.errors import DotsError

_AHEAD = 8  # items per thread; they hold no memory before they run

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    run: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> closing[Generator[Result, None, None]]:
    """Run each item on one of the threads; iterate over the results in the order of the items.

    Use it as `with in_order(...) as results`: when the block is left, no thread is working.
    """
    return closing(_results(run, iter(items), threads))


def _results(
    run: Callable[[Item], Result], items: Iterator[Item], threads: int
) -> Generator[Result, None, None]:
    stopped = threading.Event()

    def unless_stopped(item: Item) -> Result | None:
        return None if stopped.is_set() else run(item)

    pending: deque[Future[Result | None]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")
    try:
        while True:
            while len(pending) < threads * _AHEAD:
                try:
                    item = next(items)
                except StopIteration:
                    break
                try:
                    pending.append(pool.submit(unless_stopped, item))
                except RuntimeError as error:  # can't start new thread
                    raise DotsError(
                        f"{threads} threads can't be started: {error}",
                        hint="give fewer --threads, or more memory (ulimit -v, ulimit -u)",
                    ) from None
            if not pending:
                return
            result = pending.popleft().result()
            yield result  # type: ignore[misc]  # None only when nobody asks any more
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
