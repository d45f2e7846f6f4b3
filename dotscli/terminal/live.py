"""An answer while it streams: blocks that have ended stay, the open one is drawn anew, and below it
a line that says how it goes.

Nothing above the open block is touched again, so the scrollback holds every block once. Of one
that is higher than the screen the last rows are shown until it has ended. Drawing takes at most
one part in DRAW_SHARE of the time. It knows the terminal as two functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dotscli.terminal.markdown import block_rows, ended, split_blocks
from dotscli.terminal.text import COLOUR, cells, printable

DRAW_S = 0.08  # between two drawings at least
DRAW_SHARE = 25


class Live:
    """One answer; `feed` takes its text piece by piece, `end` draws what is left.

    Args:
        write: puts text with escapes on the terminal.
        size: its columns and rows now.
        status: the line below, "" for none; asked whenever something is drawn.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        size: Callable[[], tuple[int, int]],
        colour: bool,
        status: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._write = write
        self._size = size
        self._colour = colour
        self._status = status
        self._clock = clock
        self._open = ""
        self._shown: list[str] = []  # the open block's rows on the screen
        self._begun = False
        self._due = 0.0

    def feed(self, text: str) -> None:
        """More of the answer; it is drawn now or with what follows."""
        self._open += printable(text)
        since = self._clock()
        if since < self._due:
            return
        self._draw()
        now = self._clock()
        self._due = now + max(DRAW_S, DRAW_SHARE * (now - since))

    def end(self) -> None:
        """All of it, however much has been drawn."""
        columns, _ = self._size()
        lines = self._lines(split_blocks(self._open), columns)
        self._put(self._erased(columns) + self._finished(lines), "", [], bool(lines))

    def _draw(self) -> None:
        columns, rows = self._size()
        blocks, rest = ended(self._open)
        done = self._lines(blocks, columns)
        lines = self._lines(split_blocks(rest), columns)
        if lines and (done or self._begun):
            lines = ["", *lines]
        lines = _last(lines, columns, rows - 2) + self._below(columns)
        out = self._erased(columns) + self._finished(done) + "\n".join(lines)
        self._put(out, rest, lines, bool(done))

    def _put(self, out: str, rest: str, shown: list[str], begun: bool) -> None:
        """Only what has been written counts: Ctrl-C may come at any moment."""
        self._write(out)
        self._open, self._shown, self._begun = rest, shown, self._begun or begun

    def _below(self, columns: int) -> list[str]:
        text = printable(self._status())[: columns - 1]
        return [f"\x1b[2m{text}\x1b[0m" if self._colour else text] if text else []

    def _lines(self, blocks: Sequence[str], columns: int) -> list[str]:
        """Blocks with a blank line between them."""
        lines: list[str] = []
        for block in blocks:
            lines += [""] * bool(lines) + block_rows(block, columns, self._colour)
        return lines

    def _finished(self, lines: Sequence[str]) -> str:
        """Lines that stay."""
        before = "\n" if self._begun and lines else ""
        return before + "".join(f"{line}\n" for line in lines)

    def _erased(self, columns: int) -> str:
        """Back to where the open block began, by what its rows take at the width of now."""
        height = sum(n_rows(line, columns) for line in self._shown)
        up = f"\x1b[{height - 1}A" if height > 1 else ""
        return f"{up}\r\x1b[J" if height else ""


def n_rows(line: str, columns: int) -> int:
    """Rows that a line takes where the terminal wraps it; a wide character is never halved."""
    text = COLOUR.sub("", line)
    if text.isascii():
        return max(1, -(-len(text) // columns))
    rows, used = 1, 0
    for character in text:
        width = cells(character)
        if used + width > columns:
            rows, used = rows + 1, 0
        used += width
    return rows


def _last(lines: Sequence[str], columns: int, rows: int) -> list[str]:
    """The last lines of those that so many rows hold, one at least."""
    taken = 0
    for n in range(len(lines), 0, -1):
        taken += n_rows(lines[n - 1], columns)
        if taken > rows:
            return list(lines[min(n, len(lines) - 1) :])
    return list(lines)
