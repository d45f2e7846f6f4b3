"""config.toml: defaults for options, below flags and environment.

Keys are the long names of options. At the top they hold for every command that has the option; in
a table named after a command, for that command. It knows no command by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError
from dotscli.models.toml_file import read_toml

SHOWN = 80  # characters of a name in an error message


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
    values = read_toml(path, "dots config --init writes a new one") or {}
    found: dict[str, dict[str, Given]] = {command: {} for command in options}
    for key, value in values.items():
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


def _unknown(path: Path, what: str, known: Collection[str]) -> DotsError:
    what = what if len(what) <= SHOWN else f"{what[: SHOWN - 3]}..."
    names = ", ".join(sorted(name.replace("_", "-") for name in known))
    return DotsError(f"{path}: {what} is unknown", hint=f"valid here: {names}")
