"""Measuring whole processes: time, memory, bytes written; paired runs; tables; the machine.

Knows nothing about models. A comparison here is always paired: both sides run in turn (A B A B)
on the same machine within the same minutes, and the figure that counts is the ratio.
Memory and bytes come from the kernel's own accounting of the finished process (wait4, /proc), so
they include every child it waited for; peak memory without the page cache is sampled, Linux only.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_S = 0.02


@dataclass(frozen=True)
class Run:
    """One finished process. Times in seconds, sizes in bytes; None where the OS doesn't tell."""

    wall_s: float
    cpu_s: float
    peak_rss: int  # largest resident set of any process of the tree, mapped files included
    peak_private: int | None  # largest sampled sum over the tree, without mapped files
    written: int | None  # bytes handed to write(), terminal output included
    stdout: str
    stderr: str


def run(command: Sequence[str | Path], *, env: dict[str, str] | None = None) -> Run:
    """Run one command to its end and account for it. SystemExit with its stderr if it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **(env or {})},
        )
        sampler = PrivateMemory(process.pid)
        if hasattr(os, "waitid"):
            # Leave the zombie in place: its /proc entry still holds the totals.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall = time.perf_counter() - start
        written = written_bytes(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak_private = sampler.finish()
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    if process.returncode != 0:
        raise SystemExit(
            f"{' '.join(map(str, command))}\nfailed with {process.returncode}:\n{texts[1][-3000:]}"
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(
        wall,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * unit,
        peak_private,
        written,
        texts[0],
        texts[1],
    )


def written_bytes(pid: int) -> int | None:
    """Bytes a process and its waited-for children gave to write() (/proc/PID/io, wchar)."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in text.splitlines())["wchar"])


class PrivateMemory:
    """Samples anonymous and shared memory of a process tree in a thread until finish()."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def finish(self) -> int | None:
        """Stop sampling; the peak in bytes, or None if nothing could be read."""
        self._done.set()
        self._thread.join()
        return self.peak or None

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.peak = max(self.peak, sum(map(private_bytes, process_tree(self._pid))))


def process_tree(pid: int) -> list[int]:
    """The process and its descendants; empty where /proc is missing or the process is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [pid, *(p for child in text.split() for p in process_tree(int(child)))]


def private_bytes(pid: int) -> int:
    """RssAnon + RssShmem of one process: what the page cache can't give back."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem") if key in lines)


def alternate(sides: dict[str, Callable[[], Run]], repeats: int) -> dict[str, list[Run]]:
    """Run the sides in turn, `repeats` times each: A B A B ..."""
    results: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(repeats):
        for name, once in sides.items():
            os.sync()  # the writes of the side before are not this side's
            result = once()
            results[name].append(result)
            note(f"  {number + 1}/{repeats} {name}: {result.wall_s:.2f} s")
    return results


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """The ratio of each pair of neighbouring runs."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median with the range of all values: `1.23 (1.20 to 1.31)`."""
    return (
        f"{statistics.median(values):.{digits}f} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    )


def warm(paths: Iterable[Path]) -> None:
    """Read the files once, so that both sides find them in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def other_load() -> float:
    """Cores that other programs use right now, sampled over one second."""
    return float(psutil.cpu_percent(1.0)) / 100 * (psutil.cpu_count() or 1)


def wait_until_quiet(limit: float, patience_s: float) -> float:
    """Wait until other programs use less than `limit` cores, three seconds in a row; the load.

    Gives up after patience_s and returns the load it saw: the report states it.
    """
    end = time.monotonic() + patience_s
    while True:
        load = max(other_load() for _ in range(3))
        if load < limit or time.monotonic() > end:
            return load
        time.sleep(2)


def dots() -> list[str]:
    """The command line of this checkout, run by this Python."""
    return [sys.executable, "-m", "dotscli"]


def dots_env() -> dict[str, str]:
    """Lets a child find this checkout's dotscli whether it is installed or not."""
    parts = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, parts))}


def machine() -> list[str]:
    """What a reader must know to judge a figure: CPU, memory, system, versions, commit, date."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
    packages = ("llama-cpp-python", "gguf", "numpy", "torch", "transformers", "tokenizers")
    versions = ", ".join(f"{p} {version(p)}" for p in packages if version(p) != "not installed")
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    now = datetime.datetime.now(datetime.timezone.utc)
    return [
        f"CPU: {cpu}, {psutil.cpu_count(logical=False)} cores, {psutil.cpu_count()} threads",
        f"memory: {psutil.virtual_memory().total / 2**30:.0f} GiB",
        f"system: {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        f"versions: dotscli at commit {commit or 'unknown'}, {versions}",
        f"date: {now:%Y-%m-%d %H:%M} UTC",
    ]


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    rule = [":--", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def write_report(path: Path, title: str, sections: Sequence[str]) -> None:
    """Write one report of docs/bench: title, machine, sections."""
    about = "\n".join(f"- {line}" for line in machine())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([f"# {title}", about, *sections]) + "\n", "utf-8")
    note(f"wrote {path}")


class Transcript:
    """Lines that are printed now and kept for the report."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def block(self) -> str:
        """All lines as a Markdown code block."""
        return "\n".join(["```", *self.lines, "```"])


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
