"""One job is some rows of one expert: what a thread quantizes and writes in one go.

Jobs are cut from the plan in the order of the file, small enough that the threads' buffers stay
within the memory allowed and that an interruption is noticed soon. Which thread does which job
changes nothing in the output, because every job knows its place. It does not run anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dotscli.errors import DotsError
from dotscli.quantize.plan import Plan, TensorPlan
from dotscli.quantize.rows.codec import PIECE_SIZE
from dotscli.quantize.source.source import Source

JOB_SIZE = 1 << 20  # weights in a job where memory allows it

# What a run holds whatever the model: Python, numpy, a vocabulary of 152,064 tokens, the header.
BASE_NBYTES = 256 << 20
# Per weight of a job: source (4), floats of a piece (4 at most), output (4 at most). Of a
# source that is not plain floats there is less, and a piece of floats twice.
JOB_NBYTES_PER_WEIGHT = 12


@dataclass(frozen=True)
class Job:
    """Some rows of one matrix.

    Attributes:
        tensor: index into the plan.
        expert: which matrix of the stack.
        source_tensor: the input's tensor; start: first byte in it; nbytes: how many.
        first_row: of the matrix, for error messages.
        offset: where the result goes, from the start of the data section.
        out_nbytes: how large it is.
    """

    tensor: int
    expert: int
    source_tensor: str
    start: int
    nbytes: int
    first_row: int
    offset: int
    out_nbytes: int


def job_size(plan: Plan, threads: int, max_memory: int) -> int:
    """The most weights in a job that the memory allowed has room for.

    Raises:
        DotsError: not even one row per thread fits.
    """
    longest = max(tensor.spec.n_columns for tensor in plan.tensors)
    size = (max_memory - BASE_NBYTES) // (threads * JOB_NBYTES_PER_WEIGHT)
    if size < longest:
        needed = BASE_NBYTES + threads * JOB_NBYTES_PER_WEIGHT * longest
        raise DotsError(
            f"{max_memory / 1e6:.0f} MB is too little memory for {threads} threads",
            hint=f"--max-memory {needed // 1_000_000 + 1}M, or fewer --threads",
        )
    return min(JOB_SIZE, size)


def piece_size(job_size: int) -> int:
    """How many weights of a job are widened at a time."""
    return min(PIECE_SIZE, job_size)


def jobs(plan: Plan, source: Source, job_size: int) -> Iterator[Job]:
    """All jobs of the plan, in the order of the output file."""
    for index, tensor in enumerate(plan.tensors):
        yield from _tensor_jobs(index, tensor, source, job_size)


def _tensor_jobs(index: int, tensor: TensorPlan, source: Source, job_size: int) -> Iterator[Job]:
    spec, row_out = tensor.spec, tensor.row_nbytes
    rows_per_job = max(1, job_size // spec.n_columns)
    for expert in range(spec.n_experts):
        tensor_in, first = spec.source_of(expert)
        row_in = source.row_nbytes(tensor_in.name)
        for row in range(0, spec.matrix_rows, rows_per_job):
            n = min(rows_per_job, spec.matrix_rows - row)
            yield Job(
                tensor=index,
                expert=expert,
                source_tensor=tensor_in.name,
                start=(first + row) * row_in,
                nbytes=n * row_in,
                first_row=row,
                offset=tensor.offset + expert * tensor.matrix_nbytes + row * row_out,
                out_nbytes=n * row_out,
            )
