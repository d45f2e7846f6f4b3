"""How far a long piece of work is: a line redrawn in place, or plain lines where there is no
terminal.

It only formats and decides when to write; the write itself is a function handed in by
`dotscli.terminal.terminal`. It knows nothing of what is counted but its unit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from dotscli.terminal.rich_text import bar_text
from dotscli.terminal.text import format_bytes, format_seconds, three_digits

T = TypeVar("T")
Clock = Callable[[], float]

REDRAW_S = 0.1  # on a terminal
PLAIN_S = 30.0  # off one: a line this often, and whenever another tenth is done
NARROWEST_BAR, WIDEST_BAR = 8, 30  # columns
QUIET_S = 0.5  # work that ends sooner shows nothing at all
PLAIN_QUIET_S = 2.0  # the same where there is no terminal


@contextmanager
def closed(work: Iterator[T]) -> Iterator[Iterator[T]]:
    """Ends a generator at the end of the block, however that comes.

    Left to the garbage collector, one that an exception passed by would clean up too late.
    """
    try:
        yield work
    finally:
        if isinstance(work, Generator):
            work.close()


class Progress:
    """One piece of work as a context manager; `update(done)` says how much of `total` is done.

    `unit` is "B" for bytes, a word such as "tok" for a count, or "" for a bare percentage.
    """

    def __init__(
        self,
        label: str,
        total: float,
        unit: str = "",
        *,
        write: Callable[[str], None],
        redraw: bool,
        width: Callable[[], int] = lambda: 80,
        colour: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self._write = write
        self._redraw = redraw
        self._width = width
        self._colour = colour
        self._clock = clock
        self._start = clock()
        self._written = self._start
        self._tenth = 0
        self._first: tuple[float, float] | None = None
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.erase()

    def erase(self) -> None:
        """Takes a line that is redrawn away; harmless when done twice."""
        if self._drawn and self._redraw:
            self._write("\r\x1b[K")
            self._drawn = False

    def update(self, done: float) -> None:
        """Tell how much is done, in the unit of `total`; writes now and then."""
        now = self._clock()
        if self._first is None:
            self._first = (now, done)  # what was there before the first call wasn't done by us
        elapsed = now - self._start
        if elapsed < (QUIET_S if self._redraw else PLAIN_QUIET_S):
            return
        if self._redraw:
            if not self._drawn or now - self._written >= REDRAW_S:
                self._drawn, self._written = True, now
                self._write(f"\r{self._with_bar(done, now)}\x1b[K")
            return
        tenth = int(10 * done / self.total) if self.total else 0
        if tenth >= 10 and not self._drawn:
            return  # it was done at the first look: nothing was waited for
        if tenth > self._tenth or now - self._written >= PLAIN_S:
            self._tenth, self._written, self._drawn = tenth, now, True
            self._write(self._line(done, now) + "\n")

    def start_over(self) -> None:
        """What was done up to here went at another speed: the rate counts from the next call."""
        self._first = None

    def _with_bar(self, done: float, now: float) -> str:
        """The line, and a bar in the room that it leaves."""
        line, width = self._line(done, now), self._width() - 1
        room = min(WIDEST_BAR, width - len(line) - 1)
        if room < NARROWEST_BAR or not self.total:
            return line[:width]
        return f"{line} {bar_text(done / self.total, room, self._colour)}"

    def _line(self, done: float, now: float) -> str:
        first_time, first_done = self._first or (now, done)
        share = min(done / self.total, 1.0) if self.total else 0.0
        parts = [f"{self.label} {100 * share:3.0f} %"]
        seconds, amount = now - first_time, done - first_done
        rate = amount / seconds if seconds > 0 else 0.0
        if self.unit == "B":
            parts.append(f"{format_bytes(done)} of {format_bytes(self.total)}")
            parts += [f"{format_bytes(rate)}/s"] if rate else []
        elif self.unit:
            parts.append(f"{done:,.0f} of {self.total:,.0f} {self.unit}")
            parts += [f"{three_digits(rate)} {self.unit}/s"] if rate else []
        if rate and done < self.total:
            parts.append(f"{format_seconds((self.total - done) / rate)} left")
        return " · ".join(parts)


class NoProgress(Progress):
    """The same, silent."""

    def __init__(self) -> None:
        super().__init__("", 0, write=lambda text: None, redraw=False)

    def update(self, done: float) -> None:
        """Nothing is written."""
