"""`dots config`: every setting with its origin, and an example of a config.toml.

Which options there are is told by `dotscli.cli.settings`; here they become a table, JSON or the
example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError
from dotscli.folders import config_path
from dotscli.options.config import ConfigFlags
from dotscli.options.shared import Panel
from dotscli.terminal.terminal import Terminal

COLUMNS = ("option", "value", "origin", "commands")
MAX_COMMANDS = 3  # named in the table; more are counted
# What nobody wants for every run: what is read and written, and what only one run needs.
NOT_IN_EXAMPLE = ("dry-run", "force", "init", "json", "output", "path", "plot", "report", "restart")
EXAMPLE = """\
# Defaults for the options of dots. A flag wins over an environment variable, and that over this
# file. At the top an option applies to every command that has it, below [prompt] to that command.
# The values are those in force now; remove the # of what you change.
"""


@dataclass(frozen=True)
class Setting:
    """An option of a command and the value that it has without a flag.

    Attributes:
        option: its long name, without dashes.
        stands_for: what None means, "" where there is nothing to say.
        variable: of the environment, "" if there is none.
        panel: the heading of its help.
        metavar: what its help calls a value.
    """

    command: str
    option: str
    value: Any
    origin: str
    stands_for: str
    variable: str
    help: str
    panel: str
    metavar: str
    is_list: bool
    is_flag: bool

    def as_json(self) -> dict[str, object]:
        """Value and origin; null stands for what `default` says."""
        return {
            "command": self.command,
            "option": self.option,
            "value": str(self.value) if isinstance(self.value, Path) else self.value,
            "default": self.stands_for or None,
            "origin": self.origin,
            "variable": self.variable or None,
        }


def config(
    terminal: Terminal,
    settings: Sequence[Setting],
    problem: DotsError | None,
    flags: ConfigFlags,
    as_json: bool,
) -> None:
    """Show the settings, or write the example.

    Raises:
        DotsError: config.toml can't be used, which is said after the rest; or it exists already
            or can't be written.
    """
    path = config_path(terminal.environ)
    if flags.init:
        write_example(path, example(settings))
        terminal.note(
            "an example, with every option as a comment; dots config shows the values in force"
        )
    if flags.init or flags.path:
        terminal.json({"path": str(path)}) if as_json else terminal.write(f"{path}\n")
        return
    if as_json:
        terminal.json(
            {
                "path": str(path),
                "exists": path.exists(),
                "problem": problem.message if problem else None,
                "settings": [setting.as_json() for setting in settings],
            }
        )
    else:
        there = "" if path.exists() else " (does not exist; dots config --init writes an example)"
        terminal.paragraph(f"{path}{there}")
        terminal.write("\n")
        terminal.table(COLUMNS, rows(settings))
    if problem is not None:
        raise problem


def rows(settings: Sequence[Setting]) -> list[tuple[str, ...]]:
    """Rows under COLUMNS: one for each option, or for each of its values where they differ."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for setting in sorted(settings, key=lambda setting: setting.option):
        key = (setting.option, shown(setting), setting.origin)
        found.setdefault(key, []).append(setting.command)
    return [(*key, _commands(commands)) for key, commands in found.items()]


def shown(setting: Setting) -> str:
    """A value as the table shows it."""
    if setting.value is None or setting.value == "":
        return setting.stands_for or "-"
    if isinstance(setting.value, bool):
        return "on" if setting.value else "off"
    if isinstance(setting.value, list | tuple):
        return " ".join(map(str, setting.value))
    return str(setting.value)


def _commands(commands: Sequence[str]) -> str:
    if len(commands) <= MAX_COMMANDS:
        return ", ".join(commands)
    return f"{len(commands)} commands"


def write_example(path: Path, text: str) -> None:
    """Write a config.toml where none is.

    Raises:
        DotsError: there is one, or it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DotsError(
            f"{path} already exists",
            hint="dots config shows the values in force; to start over, move it away",
        ) from None
    except OSError as error:
        raise DotsError(f"{path} can't be written: {error.strerror or error}") from error


def example(settings: Sequence[Setting]) -> str:
    """A config.toml that changes nothing: what several commands share, then table by table."""
    wanted = [
        setting
        for setting in settings
        if setting.panel != Panel.INPUT.value and setting.option not in NOT_IN_EXAMPLE
    ]
    alike: dict[str, list[Setting]] = {}
    for setting in wanted:
        alike.setdefault(setting.option, []).append(setting)
    lines = [EXAMPLE]
    for option in alike.values():
        if len(option) > 1:
            lines += _entry(option[0])
    for command in dict.fromkeys(setting.command for setting in wanted):
        own = [s for s in wanted if s.command == command and len(alike[s.option]) == 1]
        if own:
            lines += [f"# [{command}]", ""]
            for setting in own:
                lines += _entry(setting)
    return "\n".join(lines)


def _entry(setting: Setting) -> Iterator[str]:
    variable = f" ({setting.variable})" if setting.variable else ""
    yield f"# {setting.help}{variable}"
    yield f"# {setting.option} = {_toml(setting)}"
    yield ""


def _toml(setting: Setting) -> str:
    """The value in TOML; where there is none, one of its kind."""
    value = setting.value
    if isinstance(value, Path):
        value = str(value)
    if value is None and (number := re.search(r"(?:^| )(-?\d+(?:\.\d+)?)$", setting.stands_for)):
        return number[1]
    if value is None and setting.stands_for and " " not in setting.stands_for:
        value = setting.stands_for
    if value is None and setting.is_flag:
        return "true"
    if value in (None, "", [], ()):
        value = [setting.metavar or "TEXT"] if setting.is_list else setting.metavar or "TEXT"
    return json.dumps(value)
