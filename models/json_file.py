"""Reads JSON that came from outside: bounded in size, depth and count, an object at the top.

It does not know what the values mean; a caller asks for one with `Values`, which names the file,
the key and the value in its errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.regular_file import check_regular

# What dots.llm1's files need: 24,231 entries of an index (2.5 MB), a tokenizer of 152,064 tokens
# and as many merges (11 MB, 600,000 values). At both limits Python takes less than 500 MB.
MAX_JSON_NBYTES = 32 << 20
MAX_VALUES = 1 << 20
_SHOWN = 80  # characters of a value in an error message


def parse_object(text: bytes | str, origin: str) -> dict[str, object]:
    """Parse one JSON object.

    Args:
        text: UTF-8 bytes or a string.
        origin: what the text is, for the error message.

    Raises:
        DotsError: not UTF-8, not JSON (NaN and Infinity are not), nested too deeply, of too many
            values, a key twice in one object, or something else than an object at the top.
    """
    check_count(text, origin)
    try:
        value = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise DotsError(f"{origin} is nested too deeply to be read") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise DotsError(f"{origin} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DotsError(f"{origin} holds {_kind(value)} where an object is expected")
    return value


def check_count(text: bytes | str, origin: str) -> None:
    """Refuse JSON of too many values before any is made: each takes 100 bytes and more.

    Every value but the outermost follows a comma or an opening bracket; those within strings are
    counted as well, since nothing is parsed.

    Raises:
        DotsError: more than MAX_VALUES.
    """
    if isinstance(text, bytes):
        count = text.count(b",") + text.count(b"[") + text.count(b"{")
    else:
        count = text.count(",") + text.count("[") + text.count("{")
    if count > MAX_VALUES:
        raise DotsError(f"{origin} has more than {MAX_VALUES} values, the limit for such a file")


def read_object(path: Path, max_nbytes: int = MAX_JSON_NBYTES) -> dict[str, object]:
    """Read a JSON file that holds one object.

    Raises:
        DotsError: the file is missing, no regular file, larger than max_nbytes, or not such JSON.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            text = file.read(max_nbytes + 1)
    except OSError as error:
        raise DotsError(f"{path} can't be read: {error.strerror}") from None
    if len(text) > max_nbytes:
        raise DotsError(f"{path} is larger than {max_nbytes} bytes, the limit for such a file")
    return parse_object(text, str(path))


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} appears twice in one object")
            seen.add(key)
    return values


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean",
             int: "a number", float: "a number", type(None): "null"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A value as it appears in an error message: JSON, ASCII only, cut when long."""
    try:
        text = json.dumps(value, default=str)
    except RecursionError:  # the decoder goes deeper than the encoder
        return "a value of too many levels"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


@dataclass(frozen=True)
class Values:
    """The values of one JSON object, asked for by key, type and range.

    Args:
        values: the object.
        origin: the file (and the path inside it) for error messages.
    """

    values: Mapping[str, object]
    origin: str

    def has(self, key: str) -> bool:
        """Whether the key is there with another value than null."""
        return self.values.get(key) is not None

    def integer(self, key: str, low: int, high: int) -> int:
        """The integer under the key, within low..high. A float that is whole is no integer."""
        value = self._required(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "an integer")
        if not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """The finite number under the key, within low..high."""
        value = self._required(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, "a number")
        if not low <= value <= high or not math.isfinite(value):
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str) -> bool:
        """The boolean under the key."""
        value = self._required(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str) -> str:
        """The string under the key."""
        value = self._required(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def section(self, key: str) -> Values:
        """The object under the key."""
        value = self._required(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Values(value, f"{self.origin}, {key}")

    def array(self, key: str) -> list[object]:
        """The list under the key."""
        value = self._required(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value

    def wrong(self, key: str, expected: str) -> DotsError:
        """The error that says what stands under the key and what should."""
        found = shown(self.values.get(key))
        return DotsError(f"{self.origin}: {key} is {found}, expected {expected}")

    def _required(self, key: str) -> object:
        value = self.values.get(key)
        if value is None:
            state = "is null" if key in self.values else "is missing"
            raise DotsError(f"{self.origin}: the key {key} {state}")
        return value
