"""config.toml: defaults for options, below flags and environment.

Keys are the long names of options. At the top they hold for every command that has the option; in
a table named after a command, for that command. It knows no command by itself.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError

MAX_NBYTES = 1 << 16
MAX_PARTS = 32  # of a dotted key; options have one or two, and the parser's time is quadratic
# Of a part so many characters are looked at: of longer ones there can't be many.
_PART = r"""(?:"(?:\\.|[^"\\\n]){0,99}"|'[^'\n]{0,99}'|[A-Za-z0-9_-]{1,99})"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}(?:[ \t]*\.[ \t]*{_PART}){{{MAX_PARTS}}}")
_SHOWN = 80  # characters of a name in an error message


def read_config(path: Path, options: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Defaults of every command: command -> option -> value.

    Args:
        path: need not exist.
        options: command -> the long names of its options, with underscores -> its parameters.

    Raises:
        DotsError: it can't be read, isn't TOML, or names a command or option that does not exist.
    """
    try:
        if not path.is_file():
            return {}
        data = path.read_bytes()
    except OSError as error:
        raise DotsError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) > MAX_NBYTES:
        raise DotsError(f"{path} has {len(data)} bytes, more than {MAX_NBYTES}")
    values = _parse(data, path)
    found: dict[str, dict[str, Any]] = {command: {} for command in options}
    for key, value in values.items():
        if isinstance(value, dict):
            if key not in options:
                raise _unknown(path, f"[{key}]", options)
            for option, given in value.items():
                name = option.replace("-", "_")
                if name not in options[key]:
                    raise _unknown(path, f"{option} in [{key}]", options[key])
                found[key][options[key][name]] = given
            continue
        name = key.replace("-", "_")
        takers = [command for command in options if name in options[command]]
        if not takers:
            raise _unknown(path, key, {option for names in options.values() for option in names})
        for command in takers:
            found[command].setdefault(options[command][name], value)
    return found


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    # The standard library has it from 3.11 on; before, the same code is the package tomli.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = data.decode("utf-8")
        if _LONG_KEY.search(text):
            raise ValueError(f"a key has more than {MAX_PARTS} parts")
        values: dict[str, Any] = toml.loads(text)
    except (ValueError, RecursionError) as error:  # both decoding errors are ValueErrors
        raise DotsError(f"{path}: {error}", hint="correct it, or move it away") from error
    return values


def _unknown(path: Path, what: str, known: Collection[str]) -> DotsError:
    what = what if len(what) <= _SHOWN else f"{what[: _SHOWN - 3]}..."
    names = ", ".join(sorted(name.replace("_", "-") for name in known))
    return DotsError(f"{path}: {what} is not known", hint=f"known here: {names}")
