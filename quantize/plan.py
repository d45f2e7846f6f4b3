"""plan(): every tensor of the output, with its sources, type, size and place, before a byte is
written.

With shards, every tensor of the checkpoint is accounted for; without (a dry run from config.json
alone) the sizes are the same. It reads no weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.models.tensors import Naming, TensorSpec, naming_of
from dotscli.quantize.recipe import Recipe
from dotscli.quantize.shards import Shards
from dotscli.quantize.types import TensorType

ALIGNMENT = 32  # GGUF's default for the start of a tensor
SOURCE_DTYPES = ("BF16", "F16", "F32")
_SHOWN = 5  # findings listed in one error


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


@dataclass(frozen=True)
class Plan:
    """The whole output file, decided.

    Attributes:
        model: the hyperparameters.
        recipe: what picked the types.
        tensors: in the order in which they are stored.
    """

    model: Dots1
    recipe: Recipe
    tensors: tuple[TensorPlan, ...]

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
    model: Dots1, shards: Shards | None, recipe: Recipe, with_importance: bool = False
) -> Plan:
    """Decide every tensor of the output.

    Args:
        shards: the checkpoint; None plans from the hyperparameters alone.
        with_importance: whether an importance matrix will be used (some presets differ).

    Raises:
        DotsError: tensors missing, superfluous, of a wrong shape or dtype; an override that matches
            nothing.
    """
    naming = Naming.PER_EXPERT if shards is None else naming_of(shards.names())
    specs = model.tensors(naming)
    if shards is not None:
        check_sources(specs, shards)
    recipe.check_overrides(specs)
    tensors, offset = [], 0
    for spec in specs:
        kind = recipe.type_for(spec, model, with_importance)
        nbytes = spec.n_elements // spec.shape[-1] * kind.row_nbytes(spec.shape[-1])
        tensors.append(TensorPlan(spec, kind, nbytes, offset))
        offset += aligned(nbytes)
    return Plan(model, recipe, tuple(tensors))


def aligned(nbytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def check_sources(specs: Iterable[TensorSpec], shards: Shards) -> None:
    """Compare what the model needs with what the checkpoint holds.

    Raises:
        DotsError: naming up to five tensors of each kind of difference.
    """
    needed: set[str] = set()
    missing, shapes, dtypes = [], [], []
    for spec in specs:
        for source in spec.sources:
            name = source.name
            needed.add(name)
            if name not in shards:
                missing.append(name)
                continue
            if shards.shape(name) != source.shape:
                shape, expected = list(shards.shape(name)), list(source.shape)
                shapes.append(f"{name} is {shape}, expected {expected}")
            if shards.dtype(name) not in SOURCE_DTYPES:
                dtypes.append(f"{name} is {shards.dtype(name)}")
    extra = [name for name in shards.names() if name not in needed]
    for what, found in (
        ("missing tensors", missing),
        ("tensors that a dots.llm1 of this config does not have", extra),
        ("tensors of the wrong shape", shapes),
        (f"tensors stored as something else than {', '.join(SOURCE_DTYPES)}", dtypes),
    ):
        if found:
            unique = list(dict.fromkeys(found))
            more = f" and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
            raise DotsError(
                f"{shards.folder}: {what} ({len(unique)}): {', '.join(unique[:_SHOWN])}{more}",
                hint="compare config.json and the shards with the published checkpoint",
            )
