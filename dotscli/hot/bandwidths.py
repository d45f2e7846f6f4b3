"""Bandwidths that were measured once, kept for `dots plan`: of main memory, and by disk.

A disk goes by the folder that it is mounted at. It measures nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.hot.heat_store import write_json
from dotscli.models.json_file import parse_object

NAME = "bandwidths.json"
FORMAT = 1
MAX_FILE_NBYTES = 1 << 16
MAX_DISKS = 64
LEAST, MOST = 1e5, 1e14  # bytes per second that a memory or a disk may have


@dataclass(frozen=True)
class Bandwidths:
    """Bytes per second.

    Attributes:
        ram: of main memory, 0 where it isn't known.
        disks: mount point -> of its disk.
        direct: mount point -> whether that was past the page cache.
    """

    ram: float = 0.0
    disks: Mapping[str, float] = field(default_factory=dict)
    direct: Mapping[str, bool] = field(default_factory=dict)

    def disk_of(self, path: Path) -> float:
        """Of the disk that a file lies on, 0 where it isn't known."""
        return self.disks.get(mount_of(path), 0.0)


def mount_of(path: Path) -> str:
    """The folder that the file system of a file is mounted at."""
    folder = path.resolve()
    while not os.path.ismount(folder) and folder != folder.parent:
        folder = folder.parent
    return str(folder)


def keep(folder: Path, found: Bandwidths) -> None:
    """Write what was measured, with what was known of other disks.

    Raises:
        DotsError: the folder can't be written to.
    """
    known = kept(folder)
    disks, direct = {**known.disks, **found.disks}, {**known.direct, **found.direct}
    rows = [
        {"mount": mount, "bytes_per_second": rate, "direct": direct.get(mount, False)}
        for mount, rate in list(disks.items())[-MAX_DISKS:]
    ]
    document = {"format": FORMAT, "ram_bytes_per_second": found.ram or known.ram, "disks": rows}
    write_json(document, folder / NAME, "bandwidths")


def kept(folder: Path) -> Bandwidths:
    """What was measured before; nothing where that can't be read: measuring it anew is easy."""
    path = folder / NAME
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_NBYTES:
            return Bandwidths()
        document = parse_object(path.read_bytes(), str(path))
    except (OSError, DotsError):
        return Bandwidths()
    if document.get("format") != FORMAT:
        return Bandwidths()
    rows = document.get("disks")
    disks, direct = {}, {}
    for row in rows[:MAX_DISKS] if isinstance(rows, list) else ():
        mount = row.get("mount") if isinstance(row, dict) else None
        rate = _rate(row.get("bytes_per_second")) if isinstance(mount, str) else 0.0
        if isinstance(mount, str) and rate:
            disks[mount], direct[mount] = rate, row.get("direct") is True
    return Bandwidths(_rate(document.get("ram_bytes_per_second")), disks, direct)


def _rate(value: object) -> float:
    """A bandwidth, and 0 for what is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and LEAST <= value <= MOST else 0.0  # type: ignore[arg-type, operator]
