"""A process under a hard limit of memory, and a disk with another read-ahead. Linux and root only.

Limits are those of cgroups, version 1 or 2, whichever memory is controlled by; there is no swap in
them. What is changed is put back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limited:
    """A cgroup with a limit; sizes in bytes."""

    folder: Path
    version: int

    @property
    def peak(self) -> int:
        """The most that was charged, page cache included."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.folder / name).read_text())

    @property
    def n_killed(self) -> int:
        """Processes that the kernel has ended for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        lines = (self.folder / name).read_text().splitlines()
        return int(dict(line.split() for line in lines).get("oom_kill", 0))

    def enter(self) -> None:
        """Moves this process into it. For a child, between fork and exec."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def limited(name: str, nbytes: int) -> Iterator[Limited]:
    """A cgroup of that name for the time of a block.

    Raises:
        SystemExit: cgroups can't be written here.
    """
    version = 1 if (V1 / "memory.limit_in_bytes").exists() else 2
    folder = (V1 if version == 1 else V2) / name
    try:
        folder.mkdir(exist_ok=True)
        if version == 1:
            (folder / "memory.limit_in_bytes").write_text(str(nbytes))
        else:
            (folder / "memory.max").write_text(str(nbytes))
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        raise SystemExit(f"{folder}: {error.strerror}: limits need root and cgroups") from error
    try:
        yield Limited(folder, version)
    finally:
        if version == 1:  # what is cached is charged to it, and keeps it there
            (folder / "memory.force_empty").write_text("0")
        folder.rmdir()


@contextmanager
def read_ahead(path: Path, kib: int) -> Iterator[None]:
    """The disk that holds a file reads ahead so many KiB for the time of a block.

    Raises:
        SystemExit: it has no such setting, or it can't be written.
    """
    device = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        before = setting.read_text()
        setting.write_text(str(kib))
    except OSError as error:
        raise SystemExit(f"{setting}: {error.strerror}") from error
    try:
        yield
    finally:
        setting.write_text(before)


def forget(path: Path) -> None:
    """Takes a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
