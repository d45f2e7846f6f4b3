"""What text does on a terminal: control characters made harmless, the columns it takes.

Pure functions; they know no stream.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Sequence

# A number before its unit, an option before its value.
_TOGETHER = re.compile(r"(\d(?= [KMGT]?i?B\b)|(?<![\w-])-[\w-]+(?= \w)|\d(?= of \d)) ")
COLOUR = re.compile("\x1b\\[[0-9;]*m")

# What a terminal would obey is shown as a picture (C0) or as a replacement character (C1);
# overrides of the writing direction are dropped: they can make a command read as another one.
_INERT: dict[int, int | None] = {code: 0x2400 + code for code in range(0x20)}
_INERT |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_INERT |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), ord("\r")])
_INERT |= {0x7F: 0x2421}
del _INERT[ord("\n")], _INERT[ord("\t")]


NAMES = "dots-names"


def _bytes_of_names(error: UnicodeError) -> tuple[bytes, int]:
    """Handles encoding errors: file names keep the bytes they have, be they UTF-8 or not."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    of_a_name = all("\udc80" <= character <= "\udcff" for character in text)
    return os.fsencode(text) if of_a_name else b"?" * len(text), error.end


codecs.register_error(NAMES, _bytes_of_names)


def printable(text: str) -> str:
    """Text that a terminal can only print: control sequences become visible and do nothing."""
    return text.translate(_INERT)


def argument(text: str) -> str:
    """A text from the command line as the UTF-8 it is, also where the locale says otherwise."""
    try:
        return os.fsencode(text).decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text


def aligned(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> list[str]:
    """The lines of a table, titles first; nothing is wrapped or cut.

    Args:
        columns: their titles.
        rows: one text per column.
        right: the columns that are aligned to the right.
    """
    widths = [max(cells(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        parts = []
        for title, cell, width in zip(columns, row, widths, strict=True):
            space = " " * (width - cells(cell))
            parts.append(space + cell if title in right else cell + space)
        lines.append("  ".join(parts).rstrip())
    return lines


def cells(text: str) -> int:
    """Columns that a text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth, wcwidth

    width = wcswidth(text)
    return width if width >= 0 else sum(max(0, wcwidth(char)) for char in text)


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> str:
    """A sentence on lines of at most `width` columns; a number and its unit stay together.

    A word that is longer than a line stays whole: a path must remain one that can be copied.

    Args:
        first: what the first line begins with.
        rest: the same for all others.
    """
    glued = _TOGETHER.sub("\\1\u00a0", text)
    lines, line = [], first
    for word in glued.split(" "):
        space = " " if line not in (first, rest) else ""
        if space and cells(line) + 1 + cells(word) > width:
            lines.append(line)
            line, space = rest, ""
        line += space + word
    return "\n".join([*lines, line]).replace("\u00a0", " ")


def format_bytes(nbytes: float) -> str:
    """Bytes with a binary prefix and three digits: `937 B`, `1.50 MiB`, `88.1 GiB`."""
    for prefix in ("", "Ki", "Mi", "Gi"):
        if nbytes < 1024:
            return three_digits(nbytes, whole=not prefix) + f" {prefix}B"
        nbytes /= 1024
    return three_digits(nbytes) + " TiB"


def three_digits(value: float, whole: bool = False) -> str:
    """A number with three digits that count, fewer behind the point the larger it is."""
    if whole or value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def format_seconds(seconds: float) -> str:
    """A duration as a person says it: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
