"""The report of a quantization: the relative error of every matrix, as a JSON file.

Errors are those of `dotscli.quantize.rows.error`, weighted by importance where the importance
matrix has something for the tensor. The report is written when the output is complete, whole or
not at all; reading one back trusts nothing in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.gguf_file import MAX_NAME
from dotscli.models.json_file import read_object
from dotscli.models.metadata import KeyValue
from dotscli.quantize.output.part_file import check_place
from dotscli.quantize.output.whole_file import write_whole
from dotscli.quantize.plan import Plan, TensorPlan
from dotscli.quantize.rows.error import ErrorAndPower, relative_error

FORMAT = 1
MAX_FILE_NBYTES = 16 << 20  # a model of 142 B weights has less than 1 MB
_MAX_MATRICES = 1 << 15
# Squares of float32 and their sums: 1e-90 to 1e+90. What is computed of these stays a number.
_MIN_NUMBER, _MAX_NUMBER = 1e-100, 1e100
_DIGITS = 6


@dataclass(frozen=True)
class TensorErrors:
    """One tensor of a report.

    Attributes:
        nbytes: of the whole tensor as stored.
        weighted: whether columns counted by their importance.
        stacked: whether it is a stack of experts.
        errors: the relative error of each matrix: of every expert, or of the one there is.
        powers: what the squares of those errors are relative to, to add errors up.
    """

    name: str
    type: str
    nbytes: int
    weighted: bool
    stacked: bool
    errors: tuple[float, ...]
    powers: tuple[float, ...]


class ErrorReport:
    """The errors of one output, added up job by job in the order of the jobs, and their file.

    Args:
        out: the output, and inputs: what it is made from; the report may be none of them.
    """

    def __init__(self, path: Path, plan: Plan, out: Path, inputs: Iterable[Path]) -> None:
        self.path = path
        self._plan = plan
        self._out = out
        self._inputs = tuple(inputs)
        self._sums = [[(0.0, 0.0)] * tensor.spec.n_experts for tensor in plan.tensors]

    def check(self, force: bool) -> None:
        """What can be known before any work is done.

        Raises:
            DotsError: it has no folder, is the output or an input, or exists without `force`.
        """
        if self.path.resolve() == self._out.resolve():
            raise DotsError(
                f"{self.path} can't be both the output and the report", hint="--report NAME.json"
            )
        check_place(self.path, [self.path], self._inputs, "--report")
        if self.path.exists() and not force:
            raise DotsError(f"{self.path} already exists", hint="--force replaces it")

    def restore(self, index: int, sums: Sequence[ErrorAndPower] | None) -> bool:
        """Take what an earlier run has measured of a tensor; whether it has."""
        if sums is None:
            return False
        self._sums[index] = list(sums)
        return True

    def add(self, index: int, expert: int, sums: ErrorAndPower) -> None:
        """What a part of a matrix adds to it."""
        error, power = self._sums[index][expert]
        self._sums[index][expert] = error + sums[0], power + sums[1]

    def of(self, index: int) -> tuple[ErrorAndPower, ...]:
        """The sums of a tensor's matrices."""
        return tuple(self._sums[index])

    def write(self, keys: Iterable[KeyValue], weighted: Callable[[int], bool]) -> None:
        """Write it, when the output is complete.

        Args:
            keys: the metadata of the output.
            weighted: whether the columns of a tensor of the plan were.

        Raises:
            DotsError: the disk is full, or another failure of the file system.
        """
        importance = [key.value for key in keys if key.key == "quantize.imatrix.file"]
        document = {
            "format": FORMAT,
            "error": "root of (sum of w (x - x')^2 / sum of w x^2), w: importance or 1",
            "output": self._out.name,
            "bytes": self._plan.total_bytes,
            "bpw": _rounded(self._plan.bpw),
            "importance": importance[0] if importance else None,
            "tensors": [
                _as_json(tensor, self._sums[index], weighted(index))
                for index, tensor in enumerate(self._plan.tensors)
            ],
        }
        text = json.dumps(document, ensure_ascii=False) + "\n"
        data = text.encode("utf-8", "backslashreplace")  # a name that is no UTF-8, as JSON escapes
        write_whole(self.path, [data])


def _as_json(
    tensor: TensorPlan, sums: Sequence[ErrorAndPower], weighted: bool
) -> dict[str, object]:
    errors = [_rounded(relative_error(error, power)) for error, power in sums]
    powers = [_rounded(power) for _, power in sums]
    return {
        "name": tensor.name,
        "type": tensor.type.name,
        "bytes": tensor.nbytes,
        "weighted": weighted,
        "error": errors if tensor.spec.is_stack else errors[0],
        "power": powers if tensor.spec.is_stack else powers[0],
    }


def is_report(path: Path) -> bool:
    """Whether a JSON file is a report, of this format or another; DotsError if it is no JSON."""
    return "tensors" in read_object(path, MAX_FILE_NBYTES)


def read_report(path: Path) -> tuple[TensorErrors, ...]:
    """The tensors of a report.

    Raises:
        DotsError: it can't be read, is no report, or says something that can't be.
    """
    document = read_object(path, MAX_FILE_NBYTES)
    tensors = document.get("tensors")
    if document.get("format") != FORMAT or not isinstance(tensors, list):
        raise DotsError(
            f"{path} is not a report of format {FORMAT}", hint="dots quantize --report writes one"
        )
    return tuple(_read(path, tensor) for tensor in tensors)


def _read(path: Path, tensor: object) -> TensorErrors:
    if not isinstance(tensor, dict):
        raise DotsError(f"{path}: a tensor is not an object")
    name, kind, nbytes = tensor.get("name"), tensor.get("type"), tensor.get("bytes")
    if not isinstance(name, str) or not isinstance(kind, str) or type(nbytes) is not int:
        raise DotsError(f"{path}: a tensor has no name, type or bytes")
    if max(len(name), len(kind)) > MAX_NAME:
        raise DotsError(f"{path}: the name of a tensor has {len(name)} characters")
    error, power = tensor.get("error"), tensor.get("power")
    errors, powers = _numbers(path, name, error), _numbers(path, name, power)
    if len(errors) != len(powers):
        raise DotsError(f"{path}: {name} has {len(errors)} errors and {len(powers)} powers")
    weighted = tensor.get("weighted") is True
    return TensorErrors(name, kind, nbytes, weighted, isinstance(error, list), errors, powers)


def _numbers(path: Path, name: str, value: object) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    numbers = [
        v
        for v in values
        if isinstance(v, int | float) and (v == 0 or _MIN_NUMBER <= v <= _MAX_NUMBER)
    ]
    if not 1 <= len(values) <= _MAX_MATRICES or len(numbers) < len(values):
        raise DotsError(f"{path}: {name} has an error or power that is not a number from 0 up")
    return tuple(map(float, numbers))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
