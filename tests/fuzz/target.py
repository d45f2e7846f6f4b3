"""What a target is: it makes inputs from a seed, and gives one to the code under attack.

An input is bytes and nothing else decides what happens with it, so that a corpus file is enough to
repeat a finding. Where several files belong together, `pack` makes one input of them.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random

from dotscli.errors import DotsError
from dotscli.terminal.terminal import Terminal

# Name of a target -> the module of this package that has it as `TARGET`.
TARGETS = (
    "gguf",
    "gguf_load",
    "safetensors",
    "index",
    "checkpoint",
    "journal",
    "imatrix",
    "heat",
    "template",
    "grammar",
    "schema",
    "config",
    "worker",
)
MAX_MESSAGE = 10_000  # characters of an error; values in it are cut
_FILE = re.compile(rb"==> ([^\n/]{1,80}) (\d{1,10})\n")


class WrongResult(AssertionError):
    """The code under attack accepted what it should have refused, or changed what it may not.

    What is wrong comes first, before a colon: it tells findings apart.
    """


class Target:
    """One kind of input.

    Args:
        folder: for files. `valid` in it is made by `prepare` once and stays for further children;
            `work` is each child's own.

    Attributes:
        hurried: set while inputs are made: where the code under attack waits for a limit of
            seconds, most of them may meet a shorter one, so that more are run. A file of the
            corpus, and an input that is run again, meets the real one.
    """

    hurried = False

    def __init__(self, folder: Path) -> None:
        self.valid = folder / "valid"
        self.work = folder / "work"

    def prepare(self) -> None:
        """Make the valid inputs that mutated ones come from, in `valid`."""

    def open(self) -> None:
        """Load what every input needs."""

    def make(self, rng: Random) -> bytes:
        """An input."""
        raise NotImplementedError

    def run(self, data: bytes) -> None:
        """Give it to the code under attack; any exception but DotsError is a finding."""
        raise NotImplementedError

    def close(self) -> None:
        """End what `open` has started."""


def target_named(name: str, folder: Path) -> Target:
    """The target of that name, its modules imported now."""
    made: Target = importlib.import_module(f"tests.fuzz.{name}").TARGET(folder)
    return made


def pack(files: Mapping[str, bytes]) -> bytes:
    """Several files as one input."""
    return b"".join(
        f"==> {name} {len(data)}\n".encode() + data + b"\n" for name, data in files.items()
    )


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of an input; what isn't one of `pack` is left out."""
    files: dict[str, bytes] = {}
    position = 0
    while head := _FILE.match(data, position):
        end = head.end() + int(head[2])
        files[head[1].decode("utf-8", "replace")] = data[head.end() : end]
        position = end + 1
    return files


def in_full(data: bytes) -> bool:
    """Whether an input meets the real limits even when hurried: one of 16 does."""
    return zlib.crc32(data) % 16 == 0


@contextmanager
def refusals() -> Iterator[None]:
    """A refusal in good words is what an attacker should get, and no finding."""
    try:
        yield
    except DotsError as error:
        check_words(error)


def check_words(error: DotsError) -> None:
    """Whether a terminal can show an error: it says something, and not a whole file."""
    if not error.message.strip():
        raise WrongResult("an error without words")
    if len(error.message) + len(error.hint) > MAX_MESSAGE:
        raise WrongResult(f"an error of too many words: {error.message[:200]}")
    terminal, _ = silent_terminal()
    terminal.error(error.message, error.hint)


def silent_terminal(**environ: str) -> tuple[Terminal, io.BytesIO]:
    """A terminal that writes UTF-8 into a buffer as strictly as a real one."""
    buffer = io.BytesIO()
    out, err = (
        io.TextIOWrapper(buffer, "utf-8", errors, write_through=True)
        for errors in ("replace", "backslashreplace")
    )
    return Terminal(io.StringIO(""), out, err, environ=environ), buffer


def strict_json(data: bytes) -> object:
    """What a command has printed, as JSON that every program reads."""
    try:
        return json.loads(data, parse_constant=_no_constant)
    except ValueError as error:
        raise WrongResult(f"a command prints no JSON: {error}") from error


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
