"""How `--help` looks: options under headings, as wide as the terminal, examples at the end.

It is plain text, with bold headings where the terminal has colours: what a pipe gets, what the
documentation shows and what a person reads are the same lines. Rich's panels would cost half of
the time that `dots --help` may take (docs/log.md). It knows no command.
"""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

from dotscli.options.shared import Panel
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import printable

HEADING = re.compile(r"^(?! ).*:$", re.MULTILINE)
# How the library writes what it knows of an option, and how people do.
PLAINER = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r" <(int|int range|float|float range)>", " N"),
        (r" <(str|path|list\[str\])>", ""),
        (r" <\w+(\|\w+)+>", ""),  # the help of such an option says the same
        (r"default: \((.*)\)", r"default: \1"),
        (r"(-?[\d.]+)<=x<=(-?[\d.]+)", r"\1 to \2"),
        (r"x>=(-?[\d.]+)", r"from \1"),
    )
)
WIDEST_LEFT, NARROWEST_LEFT = 34, 12  # columns of an option's spellings before its help


class Help:
    """What a command and the group of all commands have in common."""

    def get_help_option(self, ctx: Any) -> Any:
        """--help, written to the terminal of this run."""
        option = super().get_help_option(ctx)  # type: ignore[misc]  # of the class beside this one
        if option is not None:
            option.callback = _show
        return option

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options under the heading that each was given."""
        sections: dict[str, list[tuple[str, str]]] = {
            heading: [] for heading in ("Arguments", *(panel.value for panel in Panel))
        }
        for parameter in self.get_params(ctx):  # type: ignore[attr-defined]
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            for pattern, plain in PLAINER:
                record = tuple(pattern.sub(plain, text) for text in record)
            is_option = parameter.param_type_name == "option"
            panel = getattr(parameter, "rich_help_panel", None)
            heading = str(getattr(panel, "value", panel or "Options"))
            sections.setdefault(heading if is_option else "Arguments", []).append(record)
        for heading, records in sections.items():
            _section(formatter, heading, records)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What the first line says after the command's name."""
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [piece.strip("{}") for piece in pieces]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The epilog is examples, each a line that can be copied."""
        if self.epilog:  # type: ignore[attr-defined]
            with formatter.section("Examples"):
                for example in self.epilog.splitlines():  # type: ignore[attr-defined]
                    formatter.write(f"  {example}\n")


class Command(Help, TyperCommand):
    """One command."""

    needs_config = True

    def invoke(self, ctx: Any) -> Any:
        """Run it, but not under settings that can't be read."""
        problem = ctx.find_root().meta.get(PROBLEM)
        if problem is not None and self.needs_config:
            raise problem
        return super().invoke(ctx)


class Mender(Command):
    """A command that runs all the same: it says what is wrong with the settings."""

    needs_config = False


class Group(Help, TyperGroup):
    """All commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The commands, each with all of its first sentence, before the few options of `dots`."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        records = [
            (name, " ".join((command.help or "").split("\n\n")[0].split()))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        _section(formatter, "Commands", records)
        super().format_options(ctx, formatter)


PROBLEM = "dotscli.config.problem"  # in a context's meta: why config.toml can't be used


def help_of(ctx: Any, terminal: Terminal, colour: bool) -> str:
    """The help of a context's command, ready to be written."""
    formatter = ctx.formatter_class(width=terminal.width)
    ctx.command.format_help(ctx, formatter)
    text = printable(formatter.getvalue().rstrip("\n"))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return HEADING.sub("\x1b[1m\\g<0>\x1b[0m", text) if colour else text


def _show(ctx: Any, parameter: Any, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        terminal: Terminal = ctx.find_root().obj
        colour = terminal.colour(terminal.stdout_is_tty)
        terminal.paint(help_of(ctx, terminal, colour) + "\n")
        ctx.exit()


def _section(formatter: Any, heading: str, records: list[tuple[str, str]]) -> None:
    if records:
        left = min(WIDEST_LEFT, max(NARROWEST_LEFT, formatter.width // 3))
        with formatter.section(heading):
            formatter.write_dl(records, col_max=left)
