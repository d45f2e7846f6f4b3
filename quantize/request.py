"""Request: everything a caller decides about one output, checked before a file is opened.

It knows neither presets nor files: what a type or a path stands for is found out where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.terminal.text import format_bytes

DEFAULT_TYPE = "q4"
DEFAULT_MAX_MEMORY = 4 << 30
MAX_THREADS = 1024
MAX_TENSOR_TYPES = 1000
PLANNED = Path("planned.gguf")  # a plan has no file; only names of split files are made of it


@dataclass(frozen=True)
class Budget:
    """The most that an output may have: bits per weight over all tensors, or bytes in all files."""

    bpw: float | None = None
    nbytes: int | None = None

    @property
    def name(self) -> str:
        """For file names and people: 4.25bpw, 70.0GiB."""
        if self.nbytes is None:
            return f"{self.bpw:g}bpw"
        return format_bytes(self.nbytes).replace(" ", "")

    def allowed(self, n_weights: int) -> int:
        """Bytes, of the tensors or of the files."""
        if self.bpw is not None:
            return int(self.bpw * n_weights / 8)
        assert self.nbytes is not None
        return self.nbytes

    def shown(self, nbytes: int, n_weights: int) -> str:
        """An amount of bytes in the unit of the budget."""
        if self.bpw is not None:
            return f"{8 * nbytes / n_weights:.3f} bits per weight"
        return format_bytes(nbytes)


@dataclass(frozen=True)
class Request:
    """One output: from what, as what, where to, and how.

    Attributes:
        source: a checkpoint's folder, or a GGUF; for a plan config.json will do.
        out: the GGUF; out.part and out.part.journal are used meanwhile.
        type: a preset of `dotscli.quantize.recipe.presets`, or a GGUF whose types are taken.
        tensor_types: overrides REGEX=TYPE, the first that matches wins.
        imatrix: importance matrix in llama.cpp's GGUF or .dat form.
        blend: weight the columns of experts that saw few tokens with their layer's statistics too.
        budget: choose the type of every tensor so that the output has at most this; type is not
            looked at then.
        split_max_size: bytes; a larger output becomes several files.
        threads: 0 takes every core.
        max_memory: bytes that the process may hold.
        force: replace an existing file.
        restart: throw away what an interrupted run has left.
        report: a JSON file for the relative error of every matrix.

    Raises:
        DotsError: a number outside its range.
    """

    source: Path
    out: Path = PLANNED
    type: str = DEFAULT_TYPE
    tensor_types: tuple[str, ...] = ()
    imatrix: Path | None = None
    blend: bool = True
    budget: Budget | None = None
    split_max_size: int | None = None
    threads: int = 0
    max_memory: int = DEFAULT_MAX_MEMORY
    force: bool = False
    restart: bool = False
    report: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= MAX_THREADS:
            raise DotsError(
                f"--threads {self.threads} is out of range",
                hint=f"give 1 to {MAX_THREADS}, or 0 for all cores",
            )
        if len(self.tensor_types) > MAX_TENSOR_TYPES:
            raise DotsError(
                f"{len(self.tensor_types)} --tensor-type options, the limit is {MAX_TENSOR_TYPES}",
                hint="one regular expression can match many tensors",
            )
        for flag, nbytes in (
            ("--max-memory", self.max_memory),
            ("--split-max-size", self.split_max_size),
        ):
            if nbytes is not None and nbytes <= 0:
                raise DotsError(f"{flag} {nbytes} bytes is out of range", hint=f"e.g. {flag} 4G")
