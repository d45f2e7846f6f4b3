"""Threads that work side by side, and their results in the order of the work.

Work is handed out a little ahead, so that no thread waits and little is lost when it ends early.
It knows nothing of what is done.
"""

from __future__ import annotations

import os
from _thread import start_new_thread
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice, repeat
from queue import SimpleQueue
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
    # Only queues that are written in C lie between the threads: a signal that raises while the main
    # thread holds a lock made in Python (Future, Event, Thread.start) would leave it held for ever.
    todo: SimpleQueue[tuple[int, Item] | None] = SimpleQueue()
    done: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()
    ended: SimpleQueue[None] = SimpleQueue()
    stopped: list[bool] = []

    def work() -> None:
        while (given := todo.get()) is not None:
            number, item = given
            try:
                done.put((number, None if stopped else run(item), None))
            except BaseException as error:
                done.put((number, None, error))
        ended.put(None)

    started: list[int] = []
    early: dict[int, tuple[Result | None, BaseException | None]] = {}
    n_given = n_taken = 0
    try:
        try:  # in one call, so that no signal comes between a start and its count
            started.extend(map(start_new_thread, repeat(work, threads), repeat(())))
        except RuntimeError as error:  # can't start new thread
            raise DotsError(
                f"{threads} threads can't be started: {error}",
                hint="give fewer --threads, or more memory (ulimit -v, ulimit -u)",
            ) from None
        while True:
            for item in islice(items, n_taken + threads * _AHEAD - n_given):
                todo.put((n_given, item))
                n_given += 1
            if n_taken == n_given:
                return
            while n_taken not in early:
                number, result, problem = done.get()
                early[number] = result, problem
            result, problem = early.pop(n_taken)
            if problem is not None:
                raise problem
            n_taken += 1
            yield result  # type: ignore[misc]  # None only when nobody asks any more
    finally:
        stopped.append(True)
        for _ in started:
            todo.put(None)
        for _ in started:
            ended.get()
