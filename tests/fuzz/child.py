"""The process that runs inputs, many in turn: `python -m tests.fuzz.child SCRATCH`.

What to do is a `Job` in SCRATCH/job.json. Exceptions and memory are found here and written to
SCRATCH/found; what kills or hangs this process is found by its parent, `tests.fuzz.runner`.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import psutil

from dotscli.errors import DotsError
from tests.fuzz.inflight import MAX_NBYTES as MAX_INPUT
from tests.fuzz.inflight import Inflight, State
from tests.fuzz.target import Target, WrongResult, check_words, target_named

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 5.0
MAX_NBYTES = 1 << 30
_OURS = re.compile(
    r'File "[^"]*/((?:dotscli|quantize|models|tests/fuzz)/[^"]*)", line \d+,? in (\w+)'
)


@dataclass(frozen=True)
class Job:
    """What a child does.

    Attributes:
        files: inputs to run in turn; without any they are made from the seed.
        first: number of the first input.
        seconds: how long inputs are made; files are run to the last.
    """

    target: str
    seed: int
    first: int
    seconds: float
    files: list[str]


def place(stack: str) -> str:
    """Where in the project a traceback ends: the name by which findings are told apart."""
    found = _OURS.findall(stack)
    own = [frame for frame in found if not frame[0].startswith("tests/")] or found
    return f"{own[-1][0]}:{own[-1][1]}" if own else "outside"


def inputs(job: Job, target: Target) -> Iterator[bytes]:
    """The inputs of a job, from `first` on."""
    if job.files:
        for path in job.files[job.first :]:
            yield Path(path).read_bytes()
        return
    number, end = job.first, time.monotonic() + job.seconds
    while time.monotonic() < end:
        yield target.make(Random(f"{job.seed} {job.target} {number}"))[:MAX_INPUT]
        number += 1


def main(scratch: Path) -> None:
    """Run the job of a folder."""
    job = Job(**json.loads((scratch / "job.json").read_text()))
    stacks = (scratch / "stacks").open("w")
    faulthandler.enable(stacks, all_threads=False)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=False)
    target = target_named(job.target, scratch)
    target.work.mkdir(exist_ok=True)
    if not target.valid.exists():
        target.valid.mkdir()
        target.prepare()
    target.hurried = not job.files
    target.open()
    shared = Inflight(scratch / "inflight")
    own = psutil.Process()
    gc.freeze()  # what was loaded is not looked at again by every collection
    begun = job.first
    for data in inputs(job, target):
        peak_before, rss = _peak(), own.memory_info().rss
        shared.put(data)
        begun += 1
        state = State(begun, begun - 1, time.monotonic(), time.process_time(), rss, len(data))
        shared.write(state)
        problem = problem_of(target, data)
        shared.write(replace(state, n_done=begun, started=0.0))
        if problem is None and _peak() > peak_before and _peak() - rss > MAX_NBYTES:
            problem = "memory", "memory", f"{(_peak() - rss) >> 20} MiB"
        if problem is not None:
            _keep(scratch / "found", begun - 1, data, *problem)
            if problem[0] == "memory":  # the peak hides what comes after
                break
    target.close()


def problem_of(target: Target, data: bytes) -> tuple[str, str, str] | None:
    """Kind, name and traceback of what an input has led to."""
    try:
        try:
            target.run(data)
        except DotsError as error:
            check_words(error)
    except WrongResult as error:
        name = f"wrong: {str(error).partition(':')[0]}"
        return "wrong", name, "".join(traceback.format_exception(error, limit=-20))[-20_000:]
    except BaseException as error:
        stack = "".join(traceback.format_exception(error, limit=-60))[-20_000:]
        frames = "".join(traceback.format_tb(error.__traceback__))
        return "exception", f"{type(error).__name__} in {place(frames)}", stack
    return None


def _peak() -> int:
    """The most memory this process ever had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _keep(folder: Path, number: int, data: bytes, kind: str, name: str, text: str) -> None:
    """Note a finding; of several with one name the shortest input is kept."""
    folder.mkdir(exist_ok=True)
    path = folder / hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    try:
        known = Note(**json.loads(path.with_suffix(".json").read_text()))
    except OSError:
        known = Note(kind, name, text, number, 0)
    if known.hits and path.with_suffix(".bin").stat().st_size <= len(data):
        new = Note(kind, name, known.text, known.number, known.hits + 1)
    else:
        new = Note(kind, name, text, number, known.hits + 1)
        path.with_suffix(".bin").write_bytes(data)
    path.with_suffix(".json").write_text(json.dumps(asdict(new)))


@dataclass(frozen=True)
class Note:
    """A finding as the child writes it down."""

    kind: str
    name: str
    text: str
    number: int
    hits: int


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # threads of C libraries may never end
