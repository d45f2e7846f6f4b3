"""compare(): makes the tensors of a GGUF again from its checkpoint and compares the bytes.

The types are those of the file, so a file of any recipe can be compared. On the way the error of
every matrix is measured, as `dotscli.quantize.rows.error` defines it: weighted by the importance
matrix that the file was made with, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dotscli.errors import DotsError
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import GgufTensor, read_gguf, read_one
from dotscli.quantize.encoder import Encoder
from dotscli.quantize.imatrix.importance import THIN_KEY, load_importance
from dotscli.quantize.jobs import JOB_SIZE, Job, jobs
from dotscli.quantize.plan import Plan, TensorPlan
from dotscli.quantize.recipe.recipe import Recipe
from dotscli.quantize.rows.error import ErrorAndPower, relative_error
from dotscli.quantize.source.inputs import Input, open_input
from dotscli.quantize.threads import default_threads, in_order
from dotscli.quantize.types import written
from dotscli.quantize.verify import check_names, read_at


@dataclass(frozen=True)
class Comparing:
    """So many bytes of the checkpoint will be read."""

    n_tensors: int
    nbytes: int


@dataclass(frozen=True)
class Compared:
    """So many of them are."""

    done_nbytes: int


@dataclass(frozen=True)
class MatrixError:
    """One matrix is compared.

    Attributes:
        expert: its number, or None if the tensor has no experts.
        error: relative, 0 for a copy.
        n_different: bytes that are not what quantizing makes of the checkpoint here.
    """

    tensor: str
    type: str
    expert: int | None
    error: float
    n_different: int


AgainstEvent = Comparing | Compared | MatrixError


def compare(
    path: Path,
    origin: Path,
    names: Sequence[str] = (),
    imatrix: Path | None = None,
    threads: int = 0,
) -> Iterator[AgainstEvent]:
    """Compare a GGUF with what quantizing its checkpoint gives.

    Args:
        origin: the checkpoint, or the GGUF, that it was made from.
        names: only these tensors; none is all.
        imatrix: the importance matrix that the file was made with.

    Raises:
        DotsError: file and checkpoint are not of one model, or an importance matrix is missing.
    """
    gguf = read_gguf(path)
    check_dots1(gguf)
    check_names(gguf, names)
    used = gguf.metadata.get("quantize.imatrix.file")
    if used is not None and imatrix is None:
        raise DotsError(
            f"{path} was made with the importance matrix {used}",
            hint="give it with --imatrix; without it, every quantized tensor would differ",
        )
    thin = gguf.metadata.get(THIN_KEY)  # llama-quantize, which writes no such key, blends nothing
    importance = None
    if imatrix is not None:
        importance = load_importance(imatrix, thin if isinstance(thin, int) else 0)
    places = {
        tensor.name: (file.path, file.data_offset + tensor.offset)
        for file in map(read_one, gguf.shards)
        for tensor in file.tensors
    }
    given = open_input(origin)
    try:
        found = {
            tensor.name: tensor for tensor in gguf.tensors if not names or tensor.name in names
        }
        plan = _plan(path, found, given)
        encoder = Encoder(plan, given.source, importance, JOB_SIZE)
        work = list(jobs(plan, given.source, JOB_SIZE))
        yield Comparing(len(plan.tensors), sum(job.nbytes for job in work))
        yield from _results(encoder, work, places, threads or default_threads())
    finally:
        given.source.close()


def _plan(path: Path, found: dict[str, GgufTensor], given: Input) -> Plan:
    """The tensors of the file, with the sources that the input has for them."""
    tensors = []
    for spec in given.source.specs(given.model):
        tensor = found.pop(spec.name, None)
        if tensor is None:
            continue
        kind = written(tensor.type_id)
        if tensor.shape != spec.shape[::-1] or kind is None:
            raise DotsError(
                f"{path}: {spec.name} is {list(tensor.shape)} as {tensor.type_name}, the "
                f"input {given.source.origin} gives {list(spec.shape[::-1])}",
                hint="the file belongs to another model, or uses a type that dots does not write",
            )
        tensors.append(TensorPlan(spec, kind, tensor.nbytes, 0))
    if found:
        raise DotsError(
            f"{path} holds {next(iter(found))}, which {given.source.origin} does not have"
        )
    return Plan(given.model, Recipe.preset("f32"), tuple(tensors))


def _results(
    encoder: Encoder, work: Sequence[Job], places: dict[str, tuple[Path, int]], threads: int
) -> Iterator[AgainstEvent]:
    tensors = encoder.plan.tensors

    def run(job: Job) -> tuple[Job, int, ErrorAndPower]:
        file, start = places[tensors[job.tensor].name]
        made = np.frombuffer(encoder.encode(job), np.uint8)
        stored = read_at(file, start + job.offset, job.out_nbytes)
        n_different = int(np.count_nonzero(made != np.frombuffer(stored, np.uint8)))
        return job, n_different, encoder.error(job, stored)

    done = n_different = 0
    error = power = 0.0
    with in_order(run, work, threads) as results:
        for number, (job, different, (job_error, job_power)) in enumerate(results):
            done += job.nbytes
            yield Compared(done)
            n_different += different
            error, power = error + job_error, power + job_power
            following = work[number + 1] if number + 1 < len(work) else None
            if following and (following.tensor, following.expert) == (job.tensor, job.expert):
                continue
            tensor = tensors[job.tensor]
            expert = job.expert if tensor.spec.is_stack else None
            relative = relative_error(error, power)
            yield MatrixError(tensor.name, tensor.type.name, expert, relative, n_different)
            n_different, error, power = 0, 0.0, 0.0
