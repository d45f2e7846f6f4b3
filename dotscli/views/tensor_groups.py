"""Tensors by group: how many bytes go into experts, attention and the rest, and in which types.

What a plan, a GGUF and a checkpoint have in common. It only counts; GGUF names go in, rows of a
table come out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dotscli.terminal.text import format_bytes

ROLE = re.compile(r"(?:blk\.\d+\.)?(\w+)")
GROUPS = (
    ("embedding", r"token_embd"),
    ("attention", r"attn_(q|k|v|qkv|output)"),
    ("dense layers", r"ffn_(gate|up|down)"),
    ("router", r"ffn_gate_inp|exp_probs_b"),
    ("experts gate, up", r"ffn_(gate|up|gate_up)_exps"),
    ("experts down", r"ffn_down_exps"),
    ("shared experts", r"ffn_(gate|up|down)_shexp"),
    ("norms", r"\w*norm"),
    ("output", r"output"),
)
COLUMNS = ("tensors", "n", "types", "size", "share", "bpw")
RIGHT = ("n", "size", "share", "bpw")


@dataclass(frozen=True)
class Stored:
    """One tensor: its GGUF name, the type it is stored in, its bytes and its weights."""

    name: str
    type: str
    nbytes: int
    n_weights: int


@dataclass
class Group:
    """The tensors that do the same thing."""

    name: str
    n_tensors: int = 0
    nbytes: int = 0
    n_weights: int = 0
    types: dict[str, int] = field(default_factory=dict)

    def add(self, tensor: Stored) -> None:
        """Count one tensor."""
        self.n_tensors += 1
        self.nbytes += tensor.nbytes
        self.n_weights += tensor.n_weights
        self.types[tensor.type] = self.types.get(tensor.type, 0) + 1

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.nbytes / self.n_weights if self.n_weights else 0.0

    def as_json(self) -> dict[str, object]:
        """Bytes and counts as integers."""
        return {
            "group": self.name,
            "tensors": self.n_tensors,
            "types": self.types,
            "bytes": self.nbytes,
            "weights": self.n_weights,
            "bpw": self.bpw,
        }


def group_of(name: str) -> str:
    """The group that a GGUF tensor name belongs to; "other" if it is none of dots1."""
    match = ROLE.match(name)
    role = match[1] if match else name
    return next((group for group, roles in GROUPS if re.fullmatch(roles, role)), "other")


def tally(tensors: Iterable[Stored]) -> list[Group]:
    """The groups that occur, in the order of the model, and their total at the end."""
    order = [name for name, _ in GROUPS] + ["other"]
    groups = {name: Group(name) for name in order}
    total = Group("total")
    for tensor in tensors:
        groups[group_of(tensor.name)].add(tensor)
        total.add(tensor)
    return [*(group for group in groups.values() if group.n_tensors), total]


def table_rows(groups: Iterable[Group]) -> list[tuple[str, ...]]:
    """Rows under COLUMNS; the types of a group are listed by how often they occur."""
    groups = list(groups)
    total = groups[-1].nbytes
    return [
        (
            group.name,
            str(group.n_tensors),
            "" if group.name == "total" else _types(group.types),
            format_bytes(group.nbytes),
            f"{100 * group.nbytes / total:.1f} %" if total else "",
            f"{group.bpw:.2f}",
        )
        for group in groups
    ]


def _types(types: Mapping[str, int]) -> str:
    ordered = sorted(types.items(), key=lambda item: -item[1])
    if len(ordered) == 1:
        return ordered[0][0]
    return ", ".join(f"{name} x{count}" for name, count in ordered)
