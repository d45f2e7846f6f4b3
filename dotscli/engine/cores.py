"""The cores that compute, and so how many threads: physical ones, of hybrid CPUs the fast ones.

Decoding waits for memory, and llama.cpp's threads for each other: a second thread on a core gets
in the way of the first, and one on a slow core holds up all others. Linux tells kinds of cores
apart in sysfs; elsewhere physical cores are counted. No thread is tied to a core.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/devices")
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
MAX_CORES = 512  # what ggml takes (GGML_MAX_N_THREADS)
_MAX_CPU = 1 << 14
_FAST = 0.9  # of the greatest capacity: cores of one kind differ by a few percent


@dataclass(frozen=True)
class Cores:
    """What this process may use.

    Attributes:
        physical: cores, fast and slow; fast: those that are as fast as any.
        limit: CPUs that a container allows, 0 for no limit.
    """

    physical: int
    fast: int
    limit: int = 0

    @property
    def n_threads(self) -> int:
        """Threads to compute with."""
        return max(1, min(self.fast, self.limit or self.fast, MAX_CORES))

    def describe(self) -> str:
        """In a few words, for `dots doctor`."""
        text = f"{self.physical} physical"
        if self.fast < self.physical:
            text = f"{self.fast} fast of {self.physical} physical"
        if 0 < self.limit < self.fast:
            text += f", {self.limit} allowed by the cgroup"
        threads = "thread" if self.n_threads == 1 else "threads"
        return f"{text}: {self.n_threads} {threads} unless --threads says otherwise"


def usable_cores() -> int:
    """Threads to compute with, where nobody has said how many."""
    return cores().n_threads


def cores() -> Cores:
    """The cores that this process may use, by its affinity and its cgroup."""
    import psutil

    everything = os.cpu_count() or 1
    if sys.platform != "linux":
        n_physical = psutil.cpu_count(logical=False) or everything
        return Cores(n_physical, n_physical)
    return linux_cores(os.sched_getaffinity(0), SYSFS, CPU_MAX)


def linux_cores(allowed: set[int], sysfs: Path, cpu_max: Path) -> Cores:
    """As `cores`, from CPUs by number and the files that describe them; a CPU without is a core."""
    by_core: dict[frozenset[int], int] = {}
    for cpu in sorted(allowed):
        siblings = _cpu_list(sysfs / f"system/cpu/cpu{cpu}/topology/thread_siblings_list")
        by_core.setdefault(frozenset(siblings | {cpu}), cpu)
    first = sorted(by_core.values())
    fast = _fast(first, sysfs)
    return Cores(len(first), len(fast), _limit(cpu_max))


def _fast(cpus: list[int], sysfs: Path) -> list[int]:
    """Intel's hybrids list their performance cores; ARM's tell each CPU's capacity."""
    performance = _cpu_list(sysfs / "cpu_core/cpus")
    listed = [cpu for cpu in cpus if cpu in performance]
    if listed:
        return listed
    capacities = [_number(sysfs / f"system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus]
    most = max(capacities, default=0)
    return [cpu for cpu, own in zip(cpus, capacities, strict=True) if own >= _FAST * most]


def _limit(cpu_max: Path) -> int:
    """Whole CPUs that a container may use (cgroup v2's cpu.max: quota and period in us)."""
    match = re.fullmatch(r"(\d{1,12}) (\d{1,12})\s*", _text(cpu_max))
    return max(1, int(match[1]) // max(1, int(match[2]))) if match else 0


def _cpu_list(path: Path) -> set[int]:
    """The CPUs in a list such as 0-3,8; none where there is no such file."""
    found: set[int] = set()
    for match in re.finditer(r"(\d{1,5})(?:-(\d{1,5}))?", _text(path)):
        low = int(match[1])
        found |= set(range(low, min(int(match[2] or low), _MAX_CPU) + 1))
    return found


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"\d{1,9}", text) else 0


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""
