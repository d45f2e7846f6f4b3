"""Where the value of every option comes from: built in, config.toml, the environment.

`config_of` reads config.toml for the commands of an app and checks its values as those of a command
line are checked; `settings_of` says what holds now. It knows no command by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dotscli.cli.help import PROBLEM
from dotscli.errors import DotsError
from dotscli.options.config_file import Given, read_config
from dotscli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dotscli.commands.config import Setting

# Options whose name means something else in one command: what holds for all doesn't hold there.
OWN_MEANING = frozenset({("calibrate", "ctx_size")})  # tokens of a chunk
GIVEN = "dotscli.config.given"  # in a context's meta: what config.toml says


@dataclass(frozen=True)
class Config:
    """What config.toml says, or why it can't be used."""

    given: Mapping[str, Mapping[str, Given]] = field(default_factory=dict)
    problem: DotsError | None = None

    @property
    def defaults(self) -> dict[str, dict[str, Any]]:
        """Command -> parameter -> value, as the parser of the command line wants it."""
        return {
            command: {name: given.value for name, given in values.items()}
            for command, values in self.given.items()
        }

    def attach(self, context: Any) -> None:
        """Let the commands of a context know."""
        context.meta[PROBLEM] = self.problem
        context.meta[GIVEN] = self.given


def config_of(root: Any, terminal: Terminal) -> Config:
    """The settings in config.toml for all commands of `root`."""
    from dotscli.folders import config_path

    path = config_path(terminal.environ)
    options = {
        name: {
            spelling[2:].replace("-", "_"): parameter.name
            for parameter, spellings in _options(command)
            for spelling in spellings
        }
        for name, command in root.commands.items()
    }
    try:
        given = read_config(path, options, OWN_MEANING)
        for name, values in given.items():
            _check(root.commands[name], name, values, str(path))
    except DotsError as error:
        return Config(problem=error)
    return Config(given)


def settings_of(context: Any) -> list[Setting]:
    """Every option of every command, with the value that holds without a flag."""
    root = context.find_root()
    given: Mapping[str, Mapping[str, Given]] = root.meta.get(GIVEN) or {}
    return [
        _setting(context, name, parameter, spellings[0], given.get(name, {}).get(parameter.name))
        for name, command in root.command.commands.items()
        for parameter, spellings in _options(command)
    ]


def problem_of(context: Any) -> DotsError | None:
    """Why config.toml can't be used; None if it can."""
    problem: DotsError | None = context.find_root().meta.get(PROBLEM)
    return problem


def _options(command: Any) -> Iterator[tuple[Any, list[str]]]:
    """Parameters of a command that are options, with their long names."""
    for parameter in command.params:
        if long := [spelling for spelling in parameter.opts if spelling.startswith("--")]:
            yield parameter, long


def _check(command: Any, name: str, values: Mapping[str, Given], path: str) -> None:
    context = command.context_class(command, info_name=name)
    for parameter, (spelling, *_) in _options(command):
        given = values.get(parameter.name)
        if given is None:
            continue
        where = f"{spelling[2:]} in [{given.table}]" if given.table else spelling[2:]
        listed = isinstance(given.value, list)
        if listed != bool(parameter.multiple) or isinstance(given.value, dict):
            wanted = "a list" if parameter.multiple else "a single value"
            raise DotsError(f"{path}: {where} is not {wanted}", hint=f"dots {name} --help")
        try:
            parameter.process_value(context, given.value)
        except Exception as error:  # the parser's own errors, of whatever class
            reason = str(getattr(error, "message", error))
            raise DotsError(f"{path}: {where}: {reason}", hint=f"dots {name} --help") from error


def _setting(
    context: Any, command: str, parameter: Any, spelling: str, given: Given | None
) -> Setting:
    from dotscli.commands.config import Setting

    value, origin = parameter.default, "built-in"
    if given is not None:
        value = given.value
        origin = f"config.toml [{given.table}]" if given.table else "config.toml"
    variable = parameter.envvar or ""
    if variable and (text := parameter.resolve_envvar_value(context)) is not None:
        value, origin = text, str(variable)
    shown = parameter.show_default
    return Setting(
        command=command,
        option=spelling[2:],
        value=value,
        origin=origin,
        stands_for=shown if value in (None, "") and isinstance(shown, str) else "",
        variable=str(variable),
        help=parameter.help or "",
        panel=str(getattr(parameter.rich_help_panel, "value", "")),
        metavar=parameter.metavar or "",
        is_list=bool(parameter.multiple),
        is_flag=bool(parameter.is_flag),
    )
