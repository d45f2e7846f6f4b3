"""What a budget bought: the types of every kind of tensor, layer by layer, and the error left.

The choice is made in `dotscli.quantize.fit.fit`; here it becomes rows of a table and JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dotscli.quantize.plan import stored_nbytes
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.quantize.fit.fit import Decision, Fit

COLUMNS = ("tensors", "types by layer", "size", "bpw", "error")
RIGHT = ("size", "bpw", "error")


def fit_rows(fit: Fit) -> list[tuple[str, ...]]:
    """A row under COLUMNS for each role, in the order of the model; errors as shares of all."""
    total = sum(decision.harm for decision in fit.decisions)
    roles: dict[str, list[Decision]] = {}
    for decision in fit.decisions:
        roles.setdefault(decision.group.role, []).append(decision)
    rows: list[tuple[str, ...]] = []
    for role, decisions in roles.items():
        nbytes = sum(_nbytes(decision) for decision in decisions)
        n_weights = sum(spec.n_elements for d in decisions for spec in d.group.specs)
        harm = sum(decision.harm for decision in decisions)
        rows.append(
            (
                role,
                _types(decisions),
                format_bytes(nbytes),
                f"{8 * nbytes / n_weights:.2f}",
                f"{100 * harm / total:.1f} %" if total else "",
            )
        )
    return rows


def fit_json(fit: Fit) -> list[dict[str, object]]:
    """Every group with its tensors, its type and the harm left, in expected KL divergence."""
    return [
        {
            "layer": decision.group.layer,
            "role": decision.group.role,
            "tensors": [spec.name for spec in decision.group.specs],
            "type": decision.type.name,
            "bytes": _nbytes(decision),
            "harm": decision.harm,
        }
        for decision in fit.decisions
    ]


def _nbytes(decision: Decision) -> int:
    return sum(stored_nbytes(spec, decision.type) for spec in decision.group.specs)


def _types(decisions: Sequence[Decision]) -> str:
    """`Q5_K 1-3, IQ4_XS 4-61`; a type alone where it is that of all."""
    layers: dict[str, list[int]] = {}
    for decision in decisions:
        found = layers.setdefault(decision.type.name, [])
        if decision.group.layer is not None:
            found.append(decision.group.layer)
    if len(layers) == 1:
        return next(iter(layers))
    return ", ".join(f"{name} {_ranges(numbers)}" for name, numbers in layers.items())


def _ranges(numbers: Iterable[int]) -> str:
    """1 2 3 7 -> `1-3 7`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return " ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in ranges)
