"""What quantizing a tensor as each of several types would cost, measured on a sample of its rows.

The error is relative: with the importance matrix, what changes in the tensor's output divided by
that output, both squared, summed over the tokens that it was collected on, so that an expert counts
as often as it was used; without, the same for an input whose columns are all alike. The sample
depends on shapes alone, so the same checkpoint gives the same errors. It decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from dotscli.errors import DotsError
from dotscli.models.gguf_type import TensorType
from dotscli.models.tensors import TensorSpec
from dotscli.quantize.imatrix.importance import ImportanceMatrix
from dotscli.quantize.rows.codec import BadValue, Codec
from dotscli.quantize.rows.error import source_error
from dotscli.quantize.source.source import Source
from dotscli.quantize.threads import in_order

# Of every tensor: enough for errors within 1 or 2 %, little enough for a minute or two in all.
SAMPLE_SIZE = 1 << 18
SAMPLE_PLACES = 32
_GOLDEN = 2654435769  # 2^32 / golden ratio: multiples of it, modulo 2^32, spread evenly


@dataclass(frozen=True)
class Piece:
    """Some rows of one matrix: a tensor of the checkpoint, its first byte there and how many."""

    expert: int
    source_tensor: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class Measuring:
    """So many bytes of the checkpoint are measured."""

    done_nbytes: int
    total_nbytes: int


Errors = dict[str, dict[TensorType, float]]  # by GGUF name and type
_Work = tuple[TensorSpec, Sequence[TensorType], list[Piece]]


def sample(spec: TensorSpec, source: Source) -> list[Piece]:
    """Rows of a matrix or of a stack, spread over its experts and rows; all of a small one."""
    n_rows = spec.matrix_rows
    n_places = min(SAMPLE_PLACES, spec.n_rows)
    rows_per_place = max(1, SAMPLE_SIZE // (n_places * spec.n_columns))
    if spec.n_rows <= n_places * rows_per_place:
        places = [(expert, 0, n_rows) for expert in range(spec.n_experts)]
    else:
        n = min(rows_per_place, n_rows)
        places = [
            (place * spec.n_experts // n_places, _spread(place, n_rows - n + 1), n)
            for place in range(n_places)
        ]
    pieces = []
    for expert, row, n in dict.fromkeys(places):
        part, first = spec.source_of(expert)
        row_nbytes = source.row_nbytes(part.name)
        pieces.append(Piece(expert, part.name, (first + row) * row_nbytes, n * row_nbytes))
    return pieces


def _spread(place: int, n: int) -> int:
    """The place-th of evenly spread numbers below n."""
    return ((place + 1) * _GOLDEN % 2**32) * n >> 32


def measure(
    wanted: Sequence[tuple[TensorSpec, Sequence[TensorType]]],
    source: Source,
    importance: ImportanceMatrix | None,
    threads: int,
) -> Generator[Measuring, None, Errors]:
    """Measure the relative squared error of every tensor as each of its types.

    Yields:
        How far it is.

    Raises:
        DotsError: a weight that is not finite or too large.
    """
    local = threading.local()
    work = [(spec, kinds, sample(spec, source)) for spec, kinds in wanted]
    total = sum(piece.nbytes for _, _, pieces in work for piece in pieces)

    def run(item: _Work) -> tuple[str, dict[TensorType, float]]:
        if not hasattr(local, "codec"):
            local.codec = Codec()
        spec = item[0]
        try:
            return spec.name, _errors(local.codec, item, source, importance)
        except BadValue as bad:
            raise DotsError(
                f"{source.origin}: {spec.name} holds {bad.value:g}, which can't be quantized",
                hint="the checkpoint is damaged; quantizing with --type says where",
            ) from None

    done, found = 0, Errors()
    with in_order(run, work, threads) as results:
        for (name, errors), (_, _, pieces) in zip(results, work, strict=True):
            done += sum(piece.nbytes for piece in pieces)
            found[name] = errors
            yield Measuring(done, total)
    return found


def _errors(
    codec: Codec, work: _Work, source: Source, importance: ImportanceMatrix | None
) -> dict[TensorType, float]:
    """Of one tensor; a tensor of zeros has none."""
    spec, kinds, pieces = work
    n_columns = spec.n_columns
    entry = None if importance is None else importance.entries.get(spec.name)
    counts = np.ones(spec.n_experts) if entry is None or not entry.counts.any() else entry.counts
    error, power = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0)
    for piece in pieces:
        columns = None if importance is None else importance.row(spec.name, piece.expert)
        count = float(counts[piece.expert])
        weights = source.floats(piece.source_tensor, piece.start, piece.nbytes)
        floats, n_rows = weights.data.cast("B"), weights.size // n_columns
        for kind in kinds:
            made = np.empty(n_rows * kind.row_nbytes(n_columns), np.uint8)
            codec.encode(floats, "F32", n_columns, kind, made, columns)
            sums = source_error(kind, floats, "F32", n_columns, made, columns)
            error[kind] += count * sums[0]
            power[kind] += count * sums[1]
    return {kind: error[kind] / power[kind] if power[kind] else 0.0 for kind in kinds}
