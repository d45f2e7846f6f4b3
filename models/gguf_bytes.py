"""Bytes of a GGUF header, taken one after the other and never beyond the end of the file."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.gguf_type import BOOL, SCALARS, STRING, UINT32, VALUE_NAMES

_LENGTH = struct.Struct("<Q")
_SHOWN = 80  # characters of a value in an error message
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class GgufArray:
    """An array value, still as the bytes of the file; iterating decodes it.

    `longest` is the length in bytes of the longest string, 0 for numbers.
    """

    element_type: int
    count: int
    raw: bytes
    longest: int = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[object]:
        return iter(self.strings() if self.element_type == STRING else self.numbers())

    @property
    def element_name(self) -> str:
        """string, i32 ..."""
        return VALUE_NAMES[self.element_type]

    def strings(self) -> list[str]:
        """The elements of a string array; bytes that are no UTF-8 become U+FFFD."""
        return [text.decode("utf-8", "replace") for text in self.byte_strings()]

    def byte_strings(self) -> list[bytes]:
        """The elements of a string array as they are in the file."""
        raw, read, position, found = self.raw, _LENGTH.unpack_from, 0, []
        for _ in range(self.count):
            start = position + 8
            position = start + read(raw, position)[0]
            found.append(raw[start:position])
        return found

    def numbers(self) -> Sequence[float]:
        """The elements of an array of numbers or bools."""
        code = SCALARS[self.element_type].format[1:]
        values = struct.unpack(f"<{self.count}{code}", self.raw)
        return [bool(v) for v in values] if self.element_type == BOOL else values


def shown(value: object) -> str:
    """The value of a key as it appears in an error message: cut when long."""
    if isinstance(value, GgufArray):
        return f"an array of {len(value)}"
    text = repr(value[:_SHOWN] if isinstance(value, str) else value)
    return text if len(text) < _SHOWN else text[: _SHOWN - 3] + "..."


class TooShortError(Exception):
    """The bytes at hand end before the file does: read more of them."""


class ByteReader:
    """A position in a file; every method moves it and raises DotsError at the end of the file.

    Args:
        data: the file's first bytes, or all of them.
        size: bytes of the whole file; None where data is all of it.

    Raises:
        TooShortError: by every method, beyond the end of data but not of the file.
    """

    def __init__(self, data: bytes, path: Path, size: int | None = None) -> None:
        self._data = data
        self.path = path
        self.size = len(data) if size is None else size
        self.position = 0

    def bad(self, what: str, hint: str = "") -> DotsError:
        """An error that names file and byte."""
        return DotsError(
            f"{self.path}: {what} (at byte {self.position})",
            hint=hint or "the file is damaged or not a GGUF; download or quantize it again",
        )

    def take(self, nbytes: int, what: str) -> bytes:
        """The next bytes."""
        if nbytes > self.size - self.position:
            raise self.bad(f"the file ends at byte {self.size}, within {what}")
        start = self.position
        self._at_hand(start + nbytes)
        self.position += nbytes
        return self._data[start : self.position]

    def _at_hand(self, end: int) -> None:
        if end > len(self._data) < self.size:
            raise TooShortError

    def number(self, form: struct.Struct, what: str) -> float:
        """The next value of fixed size."""
        value: float = form.unpack(self.take(form.size, what))[0]
        return value

    def scalar(self, kind: int, what: str) -> float:
        """The next number or bool; a bool is one byte, 0 or 1."""
        value = self.number(SCALARS[kind], what)
        if kind != BOOL:
            return value
        if value not in (0, 1):
            raise self.bad(f"{what} is a bool of value {value}")
        return bool(value)

    def count(self, what: str, most: int, at_least_bytes: int = 0) -> int:
        """The next u64, where each thing counted takes some bytes of what is left of the file."""
        value = int(self.number(_LENGTH, what))
        if value > most or value * at_least_bytes > self.size - self.position:
            raise self.bad(f"{what} is {value}, too many for this file")
        return value

    def text(self, what: str, longest: int) -> str:
        """The next string; bytes that are no UTF-8 become U+FFFD."""
        return self._string(what, longest).decode("utf-8", "replace")

    def name(self, what: str, longest: int) -> str:
        """The next string as a name: not empty, UTF-8, without control characters.

        llama.cpp compares names as C strings, so a NUL in one could make two names equal.
        """
        raw = self._string(what, longest)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"{what} is not UTF-8: {raw[:40]!r}") from error
        if not name or _CONTROL.search(name):
            raise self.bad(f"{what} is {name[:40]!r}")
        return name

    def array(self, what: str) -> GgufArray:
        """The next array: element type, count, elements."""
        kind = int(self.number(SCALARS[UINT32], f"the element type of {what}"))
        if kind == STRING:
            return self._string_array(what)
        if kind not in SCALARS:
            raise self.bad(f"{what} is an array of the unknown type {kind}")
        size = SCALARS[kind].size
        count = self.count(f"the length of {what}", self.size, at_least_bytes=size)
        return GgufArray(kind, count, self.take(count * size, what))

    def _string(self, what: str, longest: int) -> bytes:
        length = self.count(f"the length of {what}", longest, at_least_bytes=1)
        return self.take(length, what)

    def _string_array(self, what: str) -> GgufArray:
        count = self.count(f"the length of {what}", self.size, at_least_bytes=8)
        start = position = self.position
        read, data, last, longest = _LENGTH.unpack_from, self._data, len(self._data) - 8, 0
        for _ in range(count):  # the loop that decides how quick all this is
            if position > last:
                self._at_hand(position + 8)
                self.position = position
                raise self.bad(f"the file ends at byte {self.size}, within {what}")
            length = read(data, position)[0]
            if length > longest:
                longest = length
            position += 8 + length
        self._at_hand(position)
        if position > self.size:
            raise self.bad(f"the file ends at byte {self.size}, within {what}")
        self.position = position
        return GgufArray(STRING, count, data[start:position], longest)
