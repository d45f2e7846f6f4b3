"""convert(): does what a plan says and tells of it by events; nothing is printed here.

The main thread cuts jobs and hands on events; worker threads read rows, quantize them and write
them to their place. Every place is known from the plan, so the file's bytes do not depend on
threads or timing, nor on whether an interruption came between: whatever ends it early, a signal or
the power included, finished tensors stay in the part, and the next run checks and keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.metadata import KeyValue
from dotscli.quantize.encoder import Encoder, Importance
from dotscli.quantize.jobs import Job, job_size, jobs
from dotscli.quantize.output.checksums import Sums, tensor_checksums
from dotscli.quantize.output.error_report import ErrorReport
from dotscli.quantize.output.identity import identity, sources
from dotscli.quantize.output.journal import Journal
from dotscli.quantize.output.layout import layouts
from dotscli.quantize.output.output import Output
from dotscli.quantize.plan import Plan
from dotscli.quantize.request import Request
from dotscli.quantize.rows.error import ErrorAndPower
from dotscli.quantize.source.source import Source
from dotscli.quantize.threads import default_threads, in_order


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
class Resumed:
    """What an earlier run had finished was read back: so many tensors are kept as they are.

    Attributes:
        n_damaged: tensors that were not what that run had written; they are made again.
        done_nbytes: bytes of the checkpoint that the kept tensors stand for.
    """

    n_tensors: int
    n_damaged: int
    done_nbytes: int


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
    """The file is durable and has its name; of several files, path is the first."""

    path: Path
    nbytes: int
    n_files: int = 1


Event = Started | Resumed | Progress | TensorDone | Finished


def convert(
    plan: Plan,
    source: Source,
    keys: Sequence[KeyValue],
    request: Request,
    importance: Importance | None = None,
    warnings: tuple[str, ...] = (),
) -> Iterator[Event]:
    """Write the file that the plan describes, or go on with it.

    Args:
        source: what the plan's tensors are made from.
        keys: the metadata.
        request: where to and how; its recipe and budget have become the plan already.
        importance: weights of columns per tensor name; tensors without are quantized plainly.
        warnings: handed on in Started.

    Yields:
        Started; after an interrupted run Progress while its tensors are checked, and Resumed;
        Progress after every job and TensorDone after every tensor; Finished.

    Raises:
        DotsError: the output is not allowed or too large, a weight is not finite, writing failed.
    """
    threads = request.threads or default_threads()
    size = job_size(plan, threads, request.max_memory)
    files = layouts(plan, keys, request.out, request.split_max_size)
    inputs = () if request.imatrix is None else (request.imatrix,)
    all_inputs = [*source.inputs, *inputs]
    output = Output(files, inputs=all_inputs, force=request.force)
    output.check()
    encoder = Encoder(plan, source, importance, size)
    errors = None
    if request.report is not None:
        errors = ErrorReport(request.report, plan, request.out, all_inputs)
    n_matrices = [tensor.spec.n_experts for tensor in plan.tensors]
    depends_on = identity(files, keys, inputs)
    made_from = sources(plan, source)
    with Journal(output.path, depends_on, made_from, n_matrices, request.restart) as journal:
        output.expect_parts(journal.is_ours)
        if errors is not None:
            errors.check(request.force or journal.naming)
        if journal.naming:
            output.take_back()
        with output:
            journal.begin(output)
            try:
                yield from _write(encoder, output, journal, errors, threads, warnings)
            finally:
                with suppress(DotsError):  # a full disk has been told of already
                    journal.commit(output)
            journal.begin_naming()
            output.give_names()
            if errors is not None:  # while the journal is there: without it, they are lost
                errors.write(keys, encoder.weighted)
            journal.finished()
    yield Finished(output.path, output.nbytes, len(files))


def _write(
    encoder: Encoder,
    output: Output,
    journal: Journal,
    errors: ErrorReport | None,
    threads: int,
    warnings: tuple[str, ...],
) -> Iterator[Event]:
    """Everything between the open parts and their names."""
    plan, source = encoder.plan, encoder.source
    left = [0] * len(plan.tensors)  # bytes of the checkpoint that each tensor still waits for
    for job in jobs(plan, source, encoder.job_size):
        left[job.tensor] += job.nbytes
    total, done = sum(left), 0
    if journal.notice:
        warnings = (*warnings, journal.notice)
    yield Started(output.path, len(plan.tensors), total, output.nbytes, plan.bpw, threads, warnings)
    checksums: dict[int, tuple[int, ...]] = {}
    for index in _intact(plan, journal.kept, output, threads):
        checksums[index] = journal.kept[index]
        if errors is not None and not errors.restore(index, journal.errors.get(index)):
            continue  # its errors are still to be measured
        done, left[index] = done + left[index], 0
        yield Progress(done, total)
    if journal.kept:
        yield Resumed(len(checksums), len(journal.kept) - len(checksums), done)
    kept = frozenset(checksums)
    sums = Sums(plan.tensors, output.read)

    def run(job: Job) -> tuple[Job, ErrorAndPower | None]:
        start = job.offset - plan.tensors[job.tensor].offset
        if job.tensor in kept:
            made = memoryview(output.read(job.tensor, start, job.out_nbytes))
        else:
            made = encoder.encode(job)
            output.write(job.tensor, start, made)
            sums.written(job.tensor, job.expert, made)
        return job, None if errors is None else encoder.error(job, made)

    todo = (job for job in jobs(plan, source, encoder.job_size) if left[job.tensor])
    told = 0
    with in_order(run, todo, threads) as results:
        for job, error in results:
            done += job.nbytes
            left[job.tensor] -= job.nbytes
            if errors is not None and error is not None:
                errors.add(job.tensor, job.expert, error)
            yield Progress(done, total)
            if left[job.tensor]:
                continue
            if job.tensor not in kept:
                checksums[job.tensor] = sums.take(job.tensor)
            measured = None if errors is None else errors.of(job.tensor)
            journal.add(job.tensor, checksums[job.tensor], measured, output)
            yield from _told(plan, told, job.tensor + 1, done)
            told = job.tensor + 1
    yield from _told(plan, told, len(plan.tensors), done)
    output.write_headers([checksums[index] for index in range(len(plan.tensors))])


def _intact(
    plan: Plan, kept: Mapping[int, tuple[int, ...]], output: Output, threads: int
) -> Iterator[int]:
    """Which of the tensors that an earlier run finished are still what it wrote.

    They are read back, since what interrupted that run may have damaged the disk's idea of them;
    reading and hashing takes a small part of the time that quantizing took.
    """

    def run(index: int) -> tuple[int, bool]:
        found = tensor_checksums(output.read, index, plan.tensors[index])
        return index, found == kept[index]

    with in_order(run, sorted(kept), threads) as results:
        for index, intact in results:
            if intact:
                yield index


def _told(plan: Plan, first: int, end: int, done: int) -> Iterator[TensorDone]:
    """The tensors from first to end, those that were kept among them."""
    for tensor in plan.tensors[first:end]:
        yield TensorDone(tensor.name, tensor.type.name, tensor.nbytes, done)
