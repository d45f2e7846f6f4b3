"""Runs the inputs of a target in a child process, and watches it: time, memory, death.

The child is started again after each death, with the next input. Every input that led to something
is run once more, alone, before it counts.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.fuzz.child import ROOT, Job, Note, place
from tests.fuzz.inflight import Inflight, State
from tests.fuzz.watch import end, watch

CORPUS = Path(__file__).parent / "corpus"
GZIP_FROM = 4096


@dataclass(frozen=True)
class Finding:
    """What one input did.

    Attributes:
        kind: exception, wrong, death, hang or memory.
        name: what tells it from others; text: a traceback or what was said last.
        number: of the input; hits: how many inputs did the same.
        repeats: whether the input alone did it again.
    """

    kind: str
    name: str
    text: str
    data: bytes
    number: int
    hits: int = 1
    repeats: bool = True


@dataclass
class Result:
    """What a run of a target came to.

    Attributes:
        peak_nbytes: the most memory that one input took.
        slowest_s: the longest that one input took, of processor time, as far as was seen.
    """

    target: str
    n_inputs: int = 0
    seconds: float = 0.0
    peak_nbytes: int = 0
    slowest_s: float = 0.0
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Of findings with the same name the shortest input stays."""
        known = self.findings.get(finding.name)
        if known is None:
            self.findings[finding.name] = finding
            return
        best = min(known, finding, key=lambda found: len(found.data))
        self.findings[finding.name] = replace(best, hits=known.hits + finding.hits)


def fuzz(target: str, seed: int, seconds: float) -> Result:
    """Run inputs that follow from the seed for so long, setting up not counted."""
    with scratch_folder() as scratch:
        result = Result(target)
        job = Job(target, seed, 0, seconds, [])
        while job.seconds > 0.2:
            try:
                last = _run_child(job, scratch, result)
            except RuntimeError as error:  # what makes the inputs fails: other targets go on
                text = f"{error}\n{_tail(scratch / 'stacks')}"
                result.add(Finding("death", "the attacker itself", text, b"", job.first))
                return result
            job = replace(job, first=last.n_begun, seconds=seconds - result.seconds)
        for finding in list(result.findings.values()):
            again = run_once(target, finding.data, scratch)
            # Where a hang is seen depends on the moment, so its name may be another.
            repeats = any(other.kind == finding.kind for other in again.values())
            result.findings[finding.name] = replace(finding, repeats=repeats)
            if not repeats and finding.kind in ("hang", "memory"):
                del result.findings[finding.name]
    return result


def replay(target: str, paths: Sequence[Path]) -> Result:
    """Run files of the corpus, each once."""
    with scratch_folder() as scratch:
        result, files = Result(target), []
        for number, path in enumerate(paths):
            plain = scratch / f"{number}.input"
            plain.write_bytes(read_input(path))
            files.append(str(plain))
        job = Job(target, 0, 0, 0.0, files)
        while job.first < len(files):
            job = replace(job, first=_run_child(job, scratch, result).n_begun)
    return result


def run_once(target: str, data: bytes, scratch: Path) -> dict[str, Finding]:
    """What one input does in a child of its own, by name."""
    path = scratch / "once.input"
    path.write_bytes(data)
    result = Result(target)
    _run_child(Job(target, 0, 0, 0.0, [str(path)]), scratch, result)
    return result.findings


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for the files of one target, in memory where there is such a place."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="dots-fuzz-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_input(path: Path) -> bytes:
    """A file of the corpus."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def write_input(finding: Finding, target: str, corpus: Path = CORPUS) -> Path:
    """Keep a finding's input in the corpus. Its name follows from what it does; a number tells it
    from inputs that once did the same.
    """
    folder = corpus / target
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(finding.name.encode(), digest_size=4).hexdigest()
    large = len(finding.data) >= GZIP_FROM
    data = gzip.compress(finding.data, mtime=0) if large else finding.data
    for number in itertools.count(1):
        path = folder / f"{finding.kind}-{digest}-{number}.{'gz' if large else 'bin'}"
        if not path.exists() or path.read_bytes() == data:
            break
    path.write_bytes(data)
    return path


def _run_child(job: Job, scratch: Path, result: Result) -> State:
    """Run a child to its end, whatever that is; its last state."""
    (scratch / "job.json").write_text(json.dumps(asdict(job)))
    shared = Inflight(scratch / "inflight", new=True)
    shutil.rmtree(scratch / "work", ignore_errors=True)
    own = {
        f"XDG_{kind}_HOME": str(scratch / "xdg") for kind in ("DATA", "CONFIG", "CACHE", "STATE")
    }
    own |= {
        "DOTS_THREADS": "1",
        "GGML_NO_BACKTRACE": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(scratch),
    }
    keep = {key: value for key, value in os.environ.items() if not key.startswith("DOTS_")}
    with (scratch / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child", str(scratch)],
            cwd=ROOT, env=keep | own, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
    try:
        seen = watch(process, shared)
    finally:
        end(process)
    last = shared.state()
    ended_badly = bool(seen.killed or process.returncode)
    if ended_badly and last.started:
        kind = seen.killed or "death"
        status = f" {_status(process.returncode)}" if kind == "death" else ""
        name = f"{kind}{status} in {_places(_tail(scratch / 'stacks'))}"
        text = _tail(scratch / "stacks") + _tail(scratch / "said")
        result.add(Finding(kind, name, text, shared.data(), last.n_begun - 1))
    shared.close()
    _collect(scratch / "found", result)
    result.n_inputs += max(0, last.n_begun - job.first)
    result.seconds += seen.seconds
    result.peak_nbytes = max(result.peak_nbytes, seen.peak_nbytes)
    result.slowest_s = max(result.slowest_s, seen.slowest_s)
    if ended_badly and not last.started:
        raise RuntimeError(f"{job.target} ends between inputs:\n{_tail(scratch / 'said')}")
    return last


def _collect(folder: Path, result: Result) -> None:
    """Take what the child has written down."""
    for path in sorted(folder.glob("*.json")):
        note = Note(**json.loads(path.read_text()))
        data = path.with_suffix(".bin").read_bytes()
        result.add(Finding(note.kind, note.name, note.text, data, note.number, note.hits))
    shutil.rmtree(folder, ignore_errors=True)


def _status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-4000:].decode("utf-8", "replace")
    except OSError:
        return ""


def _places(stack: str) -> str:
    """Where a dumped stack, innermost frame first, begins, and where it is in the project."""
    lines = [line for line in stack.splitlines() if "File " in line]
    inner = lines[0].rpartition(" in ")[2] if lines else ""
    return f"{inner} of {place(chr(10).join(reversed(lines)))}"
