"""The door to rich: tables and bars for a terminal, as text with escapes in it.

Only what has to fit a terminal's width is laid out here; a pipe gets the lines of
`dotscli.terminal.text`. rich is imported when the first of it is drawn: it takes 0.1 s. It writes
nothing itself, and answers never pass through it: it would take brackets for markup and wrap lines.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dotscli.terminal.text import cells

if TYPE_CHECKING:
    from rich.console import Console

LEAST_TEXT = 14  # columns of a cell of words; below, rows become paragraphs
GAP = 2  # columns between two cells


def table_text(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str],
    *,
    width: int,
    colour: bool,
) -> str:
    """A table of at most `width` columns: numbers stay whole, words wrap within their cell.

    Where that leaves too little room for words, every row becomes a paragraph of its own.

    Args:
        columns: titles.
        rows: one printable text per column.
        right: the columns that are aligned to the right and never broken.
    """
    widths = [max(map(cells, column)) for column in zip(columns, *rows, strict=True)]
    words = [n for n, title in enumerate(columns) if n and title not in right]
    # from the widest on, words give room; the first column names the row and stays whole
    room = width - GAP * (len(columns) - 1)
    for n in sorted(words, key=lambda n: -widths[n]):
        if sum(widths) > room:
            widths[n] = max(LEAST_TEXT, widths[n] - (sum(widths) - room))
    console = _console(width, colour)
    if sum(widths) > room:
        _paragraphs(console, columns, rows)
    else:
        _table(console, columns, rows, right, widths)
    return "\n".join(line.rstrip() for line in _taken(console).split("\n"))


def bar_text(share: float, width: int, colour: bool) -> str:
    """A bar of `width` columns, filled up to `share` of it."""
    from rich.progress_bar import ProgressBar

    console = _console(width, colour)
    console.print(ProgressBar(1.0, min(1.0, max(0.0, share)), width=width), end="")
    return _taken(console).rstrip("\n")


def _console(width: int, colour: bool) -> Console:
    from rich.console import Console

    return Console(
        file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False,
        color_system="standard" if colour else None, no_color=not colour,
        highlight=False, markup=False, emoji=False, _environ={},
    )  # fmt: skip


def _taken(console: Console) -> str:
    file: Any = console.file
    return str(file.getvalue())


def _table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str],
    widths: Sequence[int],
) -> None:
    from rich.table import Table
    from rich.text import Text

    bold = "bold" if console.color_system else ""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style=bold)
    for title, width in zip(columns, widths, strict=True):
        table.add_column(
            Text(title), justify="right" if title in right else "left", width=width,
            overflow="fold",
        )  # fmt: skip
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _paragraphs(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    bold = "bold" if console.color_system else ""
    titled = columns[0] and any(row[0] for row in rows)
    for row in rows:
        if titled:
            console.print(Text(row[0], style=bold))
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for title, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                grid.add_row(Text(title), Text(cell))
        console.print(Padding(grid, (0, 0, 0, GAP)))
