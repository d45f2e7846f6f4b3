"""convert(): does what a plan says and tells of it by events; nothing is printed here.

The main thread cuts jobs and hands on events; worker threads map rows, quantize them and write them
to their place. Every place is known from the plan, so the file's bytes do not depend on threads or
timing. Whatever ends it early, a signal included, leaves no partial file.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.models.metadata import KeyValue
from dotscli.quantize.codec import BadValue, Codec
from dotscli.quantize.gguf_header import gguf_header
from dotscli.quantize.jobs import Job, job_weights, jobs, piece_weights
from dotscli.quantize.plan import Plan
from dotscli.quantize.shards import Shards
from dotscli.quantize.writer import PartFile

DEFAULT_MAX_MEMORY = 4 << 30
_JOBS_PER_THREAD = 8  # handed out ahead; they hold no memory before they run


class Importance(Protocol):
    """Weights of columns, as `dotscli.quantize.importance.ImportanceMatrix` has them."""

    def row(self, name: str, expert: int) -> NDArray[np.float32] | None:
        """One weight per column of that expert, or None if nothing is known of the tensor."""


@dataclass(frozen=True)
class Started:
    """The plan stands and the space is there; nothing is written yet."""

    path: Path
    n_tensors: int
    source_nbytes: int
    out_nbytes: int
    bpw: float
    threads: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """done_nbytes of source_nbytes of the checkpoint are quantized and written."""

    done_nbytes: int
    source_nbytes: int


@dataclass(frozen=True)
class TensorDone:
    """One tensor is written; the order is that of the file."""

    name: str
    type: str
    nbytes: int
    done_nbytes: int


@dataclass(frozen=True)
class Finished:
    """The file is durable and has its name."""

    path: Path
    nbytes: int


Event = Started | Progress | TensorDone | Finished


def default_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def convert(
    plan: Plan,
    shards: Shards,
    keys: Sequence[KeyValue],
    out: Path,
    *,
    threads: int = 0,
    max_memory: int = DEFAULT_MAX_MEMORY,
    force: bool = False,
    importance: Importance | None = None,
    inputs: Sequence[Path] = (),
    warnings: tuple[str, ...] = (),
) -> Iterator[Event]:
    """Write the file that the plan describes.

    Args:
        keys: the metadata.
        out: the file; out.part is used meanwhile.
        threads: 0 takes every core.
        max_memory: bytes that the process may hold; the work is cut accordingly.
        force: replace an existing file.
        importance: weights of columns per tensor name; tensors without are quantized plainly.
        inputs: files that must not be the output, beside those of the checkpoint.
        warnings: handed on in Started.

    Yields:
        Started, then Progress after every job and TensorDone after every tensor, then Finished.

    Raises:
        DotsError: the output is not allowed or too large, a weight is not finite, writing failed.
    """
    threads = threads or default_threads()
    weights = job_weights(plan, threads, max_memory)
    header = gguf_header(keys, plan.tensors)
    nbytes = len(header) + plan.data_nbytes
    own = (path for path in shards.folder.iterdir() if path.suffix not in (".gguf", ".part"))
    inputs = [*shards.paths, *own, *inputs]
    work = _Work(plan, shards, importance, len(header), weights)
    source_nbytes = sum(job.nbytes for job in jobs(plan, shards, weights))
    with PartFile(out, nbytes, inputs=inputs, force=force) as part:
        yield Started(out, len(plan.tensors), source_nbytes, nbytes, plan.bpw, threads, warnings)
        part.write(header, 0)
        done = 0
        for job, last in _in_order(work, part, threads):
            done += job.nbytes
            yield Progress(done, source_nbytes)
            if last:
                tensor = plan.tensors[job.tensor]
                yield TensorDone(tensor.name, tensor.type.name, tensor.nbytes, done)
        part.finish()
    yield Finished(out, nbytes)


class _Work:
    """What every job needs; each thread has its own codec and buffer."""

    def __init__(
        self,
        plan: Plan,
        shards: Shards,
        importance: Importance | None,
        data_start: int,
        weights: int,
    ) -> None:
        self.plan = plan
        self.shards = shards
        self.importance = importance
        self.data_start = data_start
        self.weights = weights
        self.stopped = threading.Event()
        self._local = threading.local()

    def jobs(self) -> Iterator[Job]:
        """The jobs in the order of the file."""
        return jobs(self.plan, self.shards, self.weights)

    def run(self, job: Job, part: PartFile) -> Job:
        """Quantize and write one job."""
        if self.stopped.is_set():
            return job
        tensor = self.plan.tensors[job.tensor]
        out = self._buffer(job.out_nbytes)
        columns = None
        if self.importance is not None:
            columns = self.importance.row(tensor.name, job.expert)
        view = self.shards.view(job.source, job.start, job.nbytes)
        try:
            self._local.codec.encode(
                view,
                self.shards.dtype(job.source),
                tensor.shape[-1],
                tensor.type,
                out,
                columns,
            )
        except BadValue as bad:
            row, column = divmod(bad.index, tensor.shape[-1])
            reason = "is not finite" if not np.isfinite(bad.value) else "is too large"
            raise DotsError(
                f"{self.shards.tensors[job.source].path}: {job.source} holds {bad.value:g} in row "
                f"{job.first_row + row}, column {column}: it {reason} for {tensor.name} "
                f"(expert {job.expert}) as {tensor.type}",
                hint="the checkpoint is damaged; download the shard again",
            ) from None
        finally:
            view.release()
        part.write(out[: job.out_nbytes].data, self.data_start + job.offset)
        self.shards.give_back(job.source, job.start, job.nbytes)
        return job

    def _buffer(self, nbytes: int) -> NDArray[np.uint8]:
        local = self._local
        if not hasattr(local, "codec"):
            local.codec = Codec(piece_weights(self.weights))
            local.out = np.empty(0, np.uint8)
        if local.out.size < nbytes:
            local.out = np.empty(nbytes, np.uint8)
        buffer: NDArray[np.uint8] = local.out
        return buffer


def _in_order(work: _Work, part: PartFile, threads: int) -> Iterator[tuple[Job, bool]]:
    """Run the jobs on threads; yield each when it is done, in order, and whether its tensor is."""
    pending: deque[Future[Job]] = deque()
    upcoming = work.jobs()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")
    try:
        previous: Job | None = None
        while True:
            while len(pending) < threads * _JOBS_PER_THREAD:
                job = next(upcoming, None)
                if job is None:
                    break
                pending.append(pool.submit(work.run, job, part))
            if not pending:
                break
            finished = pending.popleft().result()
            if previous is not None:
                yield previous, previous.tensor != finished.tensor
            previous = finished
        if previous is not None:
            yield previous, True
    finally:
        work.stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
