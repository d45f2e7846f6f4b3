"""Regular files: which paths may be replaced by one, and which can be read as one.

A device, FIFO or socket has no size and no end, and a name given to a new file takes theirs away;
as root, `-o /dev/null` would replace the device for everybody. What is in a file is not known here.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dotscli.errors import DotsError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


def other_kind(path: Path) -> str:
    """What a path leads to if that is no regular file: "a FIFO", say; "" if it is, or isn't there.

    Links are followed; one that leads nowhere is "a dangling link".
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "a dangling link" if os.path.islink(path) else ""  # noqa: PTH114  # NUL bytes
    if stat.S_ISREG(mode):
        return ""
    return next((name for matches, name in _KINDS if matches(mode)), "a special file")


def check_replaceable(path: Path, hint: str = "name a file with --output") -> None:
    """Refuse an output that is neither a new name nor a regular file.

    Raises:
        DotsError: a folder, device, FIFO or socket, or a link that leads nowhere.
    """
    kind = other_kind(path)
    if kind:
        raise DotsError(f"{path} is {kind}: only a regular file is replaced", hint=hint)


def check_regular(path: Path, hint: str = "") -> None:
    """Refuse an input that is there and is no regular file, before it is opened.

    Raises:
        DotsError: a folder, device, FIFO or socket, or a link that leads nowhere.
    """
    kind = other_kind(path)
    if kind:
        raise DotsError(f"{path} is {kind}, not a file", hint=hint)
