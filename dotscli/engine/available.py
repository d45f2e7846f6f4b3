"""Memory that this process may still take: what the system has, and what its cgroups leave of it.

A container, a systemd unit or a batch job has a limit that the system's own figures don't show, and
the kernel ends the process that goes beyond it. On Linux every level from the process's cgroup up
to the root counts, v1 and v2. Elsewhere it is what psutil says. It knows nothing of models.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_LIMIT = 1 << 50  # no limit is written as a number near 2^63 (v1) or as max (v2)
MAX_NBYTES = 1 << 20  # of a file of the kernel; mountinfo has a line per mount
MAX_LEVELS = 64
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Available:
    """Memory in bytes.

    Attributes:
        nbytes: what this process may still take, page cache that can be given up included: a
            mapped file counts as available, also where its pages are in use.
        total: the limit that nbytes is a part of.
        limited_by: "" for the machine's memory, else the cgroup whose limit leaves least.
    """

    nbytes: int
    total: int
    limited_by: str = ""


@dataclass(frozen=True)
class _Kind:
    """How a version of cgroups names its files, and the lines of memory.stat.

    Of several limits the least one holds: over memory.high the kernel makes a process wait.
    """

    limits: tuple[str, ...]
    usage: str
    cached: tuple[str, ...]
    unsaved: tuple[str, ...]


_KINDS = {
    "cgroup": _Kind(
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
        ("total_dirty", "total_writeback"),
    ),
    "cgroup2": _Kind(
        ("memory.max", "memory.high"),
        "memory.current",
        ("inactive_file", "active_file", "slab_reclaimable"),
        ("file_dirty", "file_writeback"),
    ),
}


def available_memory() -> Available:
    """What this process may still take; about 0.1 ms, so it can be asked several times a second."""
    import psutil

    machine = psutil.virtual_memory()
    found = Available(int(machine.available), int(machine.total))
    return within_cgroups(found) if sys.platform == "linux" else found


def within_cgroups(machine: Available, root: Path = Path("/")) -> Available:
    """The machine's memory, or what the tightest of this process's cgroups leaves of it.

    Args:
        root: where proc and sys are.
    """
    least = machine
    text = _read(root / "proc/self/cgroup")
    for kind, folder, name in _levels(text, root) if text else ():
        found = _level(_KINDS[kind], folder, name)
        if found is not None and found.nbytes < least.nbytes:
            least = found
    return least


def _level(kind: _Kind, folder: Path, name: str) -> Available | None:
    """What one cgroup leaves; None without a limit, or with figures that can't be."""
    limits = [_number(_read(folder / limit)) for limit in kind.limits]
    usage = _number(_read(folder / kind.usage))
    limit = min((n for n in limits if n is not None), default=None)
    if limit is None or usage is None:
        return None
    stat = _table(_read(folder / "memory.stat"))
    cached = sum(stat.get(key, 0) for key in kind.cached)
    cached -= sum(stat.get(key, 0) for key in kind.unsaved)  # to be written before it is free
    needed = usage - min(max(0, cached), usage)
    return Available(max(0, limit - needed), limit, f"cgroup {name}")


@functools.lru_cache(maxsize=4)  # a process is hardly ever moved, and mountinfo can be long
def _levels(cgroup: str, root: Path) -> tuple[tuple[str, Path, str], ...]:
    """(version, folder, name) of every cgroup that this process is in, the innermost first.

    Args:
        cgroup: the text of /proc/self/cgroup.
    """
    ours = {}
    for line in cgroup.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            ours["cgroup"] = path
        elif not controllers and path.startswith("/"):
            ours["cgroup2"] = path
    found = []
    for kind, within, point in _mounts(_read(root / "proc/self/mountinfo")):
        if kind in ours:
            below = _below(ours.pop(kind), within)
            for part in (below, *below.parents)[:MAX_LEVELS]:
                name = "/" if part == PurePosixPath() else f"/{part}"
                found.append((kind, root / point.lstrip("/") / part, name))
    return tuple(found)


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, str]]:
    """(version, the cgroup that is mounted, where) of every mount that memory is limited in."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2" or (kinds[0] == "cgroup" and "memory" in kinds[2].split(",")):
            within, point = (_ESCAPED.sub(lambda m: chr(int(m[1], 8)), f) for f in fields[3:5])
            yield kinds[0], within, point


def _below(path: str, within: str) -> PurePosixPath:
    """Where a cgroup lies below the mounted one; a container may see only its own, as the root."""
    try:
        below = PurePosixPath(path).relative_to(within)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in below.parts else below


def _read(path: Path) -> str:
    """At most MAX_NBYTES of a file of the kernel; nothing where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        parts, left = [], MAX_NBYTES
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "surrogateescape")


def _number(text: str) -> int | None:
    """A count of bytes that can be one."""
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        return None
    return int(text) if int(text) < MAX_LIMIT else None


def _table(text: str) -> dict[str, int]:
    """The lines of memory.stat that are a name and a number."""
    pairs = (line.partition(" ") for line in text.splitlines())
    numbers = ((name, _number(value)) for name, _, value in pairs)
    return {name: value for name, value in numbers if value is not None}
