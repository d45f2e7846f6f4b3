"""The lines of a journal: JSON objects with a checksum each, and what may stand in them.

What a line says is checked like everything else from outside, its checksum notwithstanding: the
file may be damaged, of a version to come, or somebody's attempt. What follows is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dotscli.quantize.rows.error import ErrorAndPower

# A tensor of 1024 experts has a line of 70 KB; a resumed run seldom says a tensor twice.
MAX_NBYTES = 1 << 26
MAX_LINE = 1 << 20
_MAX_ERROR = 1e300
_BEGINNING = re.compile(rb'[0-9a-f]{16} \{"format":\d')
_SUM = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class TensorLine:
    """A finished tensor.

    Attributes:
        index: in the plan; made_from: a hash of its sources.
        sums: the checksum of every matrix; errors: their error sums, or nothing.
    """

    index: int
    made_from: str
    sums: tuple[int, ...]
    errors: tuple[ErrorAndPower, ...]

    @classmethod
    def read(cls, value: Mapping[str, object], n_matrices: Sequence[int]) -> TensorLine:
        """The line in a parsed object; ValueError if it doesn't fit the plan.

        Args:
            n_matrices: how many checksums every tensor of the plan has.
        """
        index, sums, origin = value.get("tensor"), value.get("sums"), value.get("from")
        if type(index) is not int or not 0 <= index < len(n_matrices):
            raise ValueError("not a tensor of the plan")
        if not isinstance(sums, list) or len(sums) != n_matrices[index]:
            raise ValueError("not one checksum for each matrix")
        if not all(isinstance(text, str) and _SUM.fullmatch(text) for text in sums):
            raise ValueError("an invalid checksum")
        errors = _error_sums(value.get("errors", []))
        if not isinstance(origin, str) or len(errors) not in (0, len(sums)):
            raise ValueError("no origin, or not one error for each matrix")
        return cls(index, origin, tuple(int(text, 16) for text in sums), errors)

    def line(self) -> bytes:
        """As it is written."""
        value: dict[str, object] = {
            "tensor": self.index,
            "from": self.made_from,
            "sums": [f"{value:016x}" for value in self.sums],
        }
        return line(value | ({"errors": self.errors} if self.errors else {}))


def _error_sums(value: object) -> tuple[ErrorAndPower, ...]:
    if not isinstance(value, list):
        raise ValueError("errors that are not a list")
    pairs = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("an error that is not a pair")
        for number in pair:
            if type(number) not in (int, float) or not 0 <= number < _MAX_ERROR:
                raise ValueError("an error that is not a number from 0 up")
        pairs.append((float(pair[0]), float(pair[1])))
    return tuple(pairs)


def line(value: Mapping[str, object]) -> bytes:
    """An object as a line."""
    text = json.dumps(value, separators=(",", ":")).encode("ascii")
    return _mark(text) + b" " + text + b"\n"


def _mark(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode("ascii")


def begins(fd: int) -> bool:
    """Whether a file begins like a journal, be it damaged after that."""
    return _BEGINNING.match(os.pread(fd, 64, 0)) is not None


def read_lines(fd: int) -> Iterator[tuple[int, dict[str, object]]]:
    """The whole lines of a file up to the first torn one: where each ends, and its object.

    Raises:
        ValueError: a line with the right checksum that is no JSON object.
    """
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        while file.tell() < MAX_NBYTES:
            mark, _, text = file.readline(MAX_LINE).partition(b" ")
            if not text.endswith(b"\n") or mark != _mark(text[:-1]):
                return
            try:
                value = json.loads(text)
            except RecursionError:
                value = None
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
            yield file.tell(), value
