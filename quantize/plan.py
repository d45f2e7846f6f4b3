"""plan(): every tensor of the output, with its sources, type, size and place, before a byte is
written.

With a source, every tensor of the input is accounted for; without (a dry run from config.json
alone) the sizes are the same. It reads no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dotscli.models.gguf_type import TensorType
from dotscli.models.tensors import Naming, Sizes, TensorSpec, tensor_specs
from dotscli.quantize.recipe.recipe import Recipe
from dotscli.quantize.source.source import Source
from dotscli.quantize.types import DTYPES

# Where a tensor may start. A page, so that an expert of the real shapes, whose matrices are whole
# pages in every type, can be read past the page cache, straight into its place.
ALIGNMENT = 4096


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output.

    Attributes:
        spec: its name, shape (numpy order) and sources.
        type: what it is stored as.
        nbytes: its size in the file, without padding.
        offset: from the start of the data section; a multiple of ALIGNMENT.
    """

    spec: TensorSpec
    type: TensorType
    nbytes: int
    offset: int

    @property
    def name(self) -> str:
        """GGUF name."""
        return self.spec.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Numpy order, rows before columns."""
        return self.spec.shape

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in the file."""
        return self.type.row_nbytes(self.spec.n_columns)

    @property
    def matrix_nbytes(self) -> int:
        """Bytes of one expert's matrix in the file, or of the one there is."""
        return self.spec.matrix_rows * self.row_nbytes


@dataclass(frozen=True)
class Plan:
    """The whole output file, decided.

    Attributes:
        model: the sizes of the model.
        recipe: what picked the types.
        tensors: in the order in which they are stored.
        warnings: what a user should know before it is done.
    """

    model: Sizes
    recipe: Recipe
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, without header and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def data_nbytes(self) -> int:
        """Bytes of the data section: tensors, each padded to ALIGNMENT."""
        last = self.tensors[-1]
        return last.offset + aligned(last.nbytes)

    @property
    def n_weights(self) -> int:
        """Weights of the model."""
        return sum(tensor.spec.n_elements for tensor in self.tensors)

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.total_bytes / self.n_weights

    def as_json(self) -> dict[str, object]:
        """What --dry-run --json prints; shapes in GGUF order, columns first."""
        return {
            "total_bytes": self.total_bytes,
            "bpw": self.bpw,
            "tensors": [
                {"name": t.name, "type": t.type.name, "shape": list(t.shape[::-1]),
                 "bytes": t.nbytes}
                for t in self.tensors
            ],
        }  # fmt: skip


def plan(
    model: Sizes, source: Source | None, recipe: Recipe, with_importance: bool = False
) -> Plan:
    """Decide every tensor of the output.

    Args:
        source: the input; None plans from the sizes alone.
        with_importance: whether an importance matrix will be used (some presets differ).

    Raises:
        DotsError: tensors missing, superfluous, of a wrong shape or dtype; an override that matches
            nothing.
    """
    specs = source.specs(model) if source else tensor_specs(model, Naming.PER_EXPERT)
    recipe.check_overrides(specs)
    tensors, offset = [], 0
    for spec in specs:
        kind = recipe.type_for(spec, model, with_importance)
        nbytes = stored_nbytes(spec, kind)
        tensors.append(TensorPlan(spec, kind, nbytes, offset))
        offset += aligned(nbytes)
    warnings = _lost_twice(tensors, source) if source else ()
    return Plan(model, recipe, tuple(tensors), warnings)


def _lost_twice(tensors: Sequence[TensorPlan], source: Source) -> tuple[str, ...]:
    """A warning if tensors that are stored in 8 bits or less are to be quantized once more."""
    found = {}
    for tensor in tensors:
        dtype = source.dtype(tensor.spec.sources[0].name)
        if tensor.type.quantized and dtype not in (*DTYPES, tensor.type.name):
            found[tensor.name] = dtype
    if not found:
        return ()
    return (
        f"{len(found)} of {len(tensors)} tensors are already stored as "
        f"{', '.join(sorted(set(found.values())))} and lose precision again; quantizing the "
        "published bf16 weights would give a better file",
    )


def stored_nbytes(spec: TensorSpec, kind: TensorType) -> int:
    """Bytes of one tensor as a type that fits its rows, without padding."""
    return spec.n_rows * kind.row_nbytes(spec.n_columns)


def aligned(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // alignment) * alignment
