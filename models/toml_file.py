"""Small TOML files from outside, bounded in size and in what their parser takes time for.

The text is looked at before the parser sees it, which takes a minute for a key of 100,000 parts.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError
from dotscli.models.regular_file import check_regular

MAX_NBYTES = 1 << 16
MAX_PARTS = 4  # of a dotted key; those of these files have two at most
MAX_NESTED = 8  # brackets and braces within each other

_STRINGS = re.compile(
    r'"""(?:\\.|[^\\])*?"""|' + r"'''.*?'''|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)
_PARTS = re.compile(rf"(?<![\w-])[\w-]+(?:[ \t]*\.[ \t]*[\w-]+){{{MAX_PARTS},}}")


def read_toml(path: Path, remedy: str) -> dict[str, Any] | None:
    """What a file says, None where there is no file.

    Args:
        remedy: how to get another one, as the end of a hint.

    Raises:
        DotsError: it can't be read, is too long, or isn't TOML.
    """
    try:
        if not path.exists():
            return None
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(MAX_NBYTES + 1)
    except OSError as error:
        raise DotsError(
            f"{path} can't be read: {error.strerror or error}", hint="dots doctor"
        ) from error
    if len(data) > MAX_NBYTES:
        raise DotsError(f"{path} has more than {MAX_NBYTES} bytes", hint=f"shorten it; {remedy}")
    # The standard library has it from 3.11 on; before, the same code is the package tomli.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = data.decode("utf-8")
        _check(text)
        values: dict[str, Any] = toml.loads(text)
    except (ValueError, RecursionError) as error:  # both decoding errors are ValueErrors
        raise DotsError(f"{path}: {error}", hint=f"fix it, or move it away; {remedy}") from error
    return values


def _check(text: str) -> None:
    """Refuses what no such file needs and what the parser takes very long for.

    Raises:
        ValueError: keys of many parts, or deep nesting.
    """
    bare = _STRINGS.sub("_", text)
    if found := _PARTS.search(bare):
        line = bare.count("\n", 0, found.start()) + 1
        raise ValueError(f"a key has more than {MAX_PARTS} parts, near line {line}")
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", bare):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_NESTED:
            raise ValueError(f"brackets are nested more than {MAX_NESTED} deep")
