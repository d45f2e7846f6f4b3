"""config.toml: defaults for options, below flags and environment.

Keys are the long names of options. At the top they hold for every command that has the option; in
a table named after a command, for that command. It knows no command by itself. The file is looked
at before the TOML parser sees it, which takes a minute for a key of 100,000 parts.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError

MAX_NBYTES = 1 << 16
MAX_PARTS = 4  # of a dotted key; those of this file have two at most
MAX_NESTED = 8  # brackets and braces within each other
SHOWN = 80  # characters of a name in an error message

_STRINGS = re.compile(
    r'"""(?:\\.|[^\\])*?"""|' + r"'''.*?'''|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)
_PARTS = re.compile(rf"(?<![\w-])[\w-]+(?:[ \t]*\.[ \t]*[\w-]+){{{MAX_PARTS},}}")


@dataclass(frozen=True)
class Given:
    """A value of the file; `table` is the command whose table it is in, "" at the top."""

    value: Any
    table: str


def read_config(
    path: Path,
    options: Mapping[str, Mapping[str, str]],
    apart: Collection[tuple[str, str]] = (),
) -> dict[str, dict[str, Given]]:
    """Defaults of every command: command -> parameter -> value.

    Args:
        path: need not exist.
        options: command -> the long names of its options, with underscores -> its parameters.
        apart: (command, option) for which a value at the top doesn't hold.

    Raises:
        DotsError: it can't be read, isn't TOML, or names a command or option that does not exist.
    """
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            data = file.read(MAX_NBYTES + 1)
    except OSError as error:
        raise DotsError(
            f"{path} can't be read: {error.strerror or error}", hint="dots doctor"
        ) from error
    if len(data) > MAX_NBYTES:
        raise DotsError(
            f"{path} has more than {MAX_NBYTES} bytes", hint="it contains only options; shorten it"
        )
    found: dict[str, dict[str, Given]] = {command: {} for command in options}
    for key, value in _parse(data, path).items():
        if isinstance(value, dict):
            if key not in options:
                raise _unknown(path, f"[{key}]", options)
            for option, given in value.items():
                name = option.replace("-", "_")
                if name not in options[key]:
                    raise _unknown(path, f"{option} in [{key}]", options[key])
                found[key][options[key][name]] = Given(given, key)
            continue
        name = key.replace("-", "_")
        takers = [command for command in options if name in options[command]]
        if not takers:
            raise _unknown(path, key, {option for names in options.values() for option in names})
        for command in takers:
            if (command, name) in apart:
                continue
            found[command].setdefault(options[command][name], Given(value, ""))
    return found


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    # The standard library has it from 3.11 on; before, the same code is the package tomli.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = data.decode("utf-8")
        _check(text)
        values: dict[str, Any] = toml.loads(text)
    except (ValueError, RecursionError) as error:  # both decoding errors are ValueErrors
        raise DotsError(
            f"{path}: {error}", hint="fix it, or move it away; dots config --init writes a new one"
        ) from error
    return values


def _check(text: str) -> None:
    """Refuses what no configuration needs and what the parser takes very long for.

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


def _unknown(path: Path, what: str, known: Collection[str]) -> DotsError:
    what = what if len(what) <= SHOWN else f"{what[: SHOWN - 3]}..."
    names = ", ".join(sorted(name.replace("_", "-") for name in known))
    return DotsError(f"{path}: {what} is unknown", hint=f"valid here: {names}")
