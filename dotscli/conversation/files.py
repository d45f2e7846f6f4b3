"""Files as parts of a message: how their text is told from the rest, and which ones are meant."""

from __future__ import annotations

import glob
from pathlib import Path

from dotscli.errors import DotsError

MAX_FILES = 100
MAX_LOOKED_AT = 10_000  # names that a pattern may lead to


def file_part(name: str, content: str) -> str:
    """A file's text under its name, without a line end behind it."""
    return f"--- File: {name} ---\n{content}".removesuffix("\n")


def matching(pattern: str) -> list[Path]:
    """The files that a pattern stands for, in order; `**` goes through folders.

    Raises:
        DotsError: none, or more than MAX_FILES.
    """
    found: list[Path] = []
    for n, name in enumerate(glob.iglob(str(Path(pattern).expanduser()), recursive=True)):  # noqa: PTH207  # Path.glob takes no absolute patterns
        path = Path(name)
        if path.is_file():
            found.append(path)
        if len(found) > MAX_FILES or n >= MAX_LOOKED_AT:
            raise DotsError(
                f"{pattern[:80]} leads to too many files, more than {MAX_FILES}",
                hint="give a narrower pattern",
            )
    if not found:
        raise DotsError(f"no file matches {pattern[:80]}")
    return sorted(found)
