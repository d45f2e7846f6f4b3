"""What is shown besides the answer: the options of every command, and the terminal they make.

The rest of what `dotscli.options.shared` is for; apart from it since options know no terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dotscli.errors import DotsError, ExitStatus
from dotscli.options.shared import Panel
from dotscli.terminal.terminal import Terminal


@dataclass(frozen=True)
class OutputFlags:
    """What is shown besides the answer."""

    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", rich_help_panel=Panel.OUTPUT,
            help="No notes and no progress on stderr.",
        ),
    ] = False  # fmt: skip
    color: Annotated[
        str,
        typer.Option(
            "--color", metavar="WHEN", rich_help_panel=Panel.OUTPUT,
            help="Colors: auto, always or never.",
        ),
    ] = "auto"  # fmt: skip


def terminal_of(context: typer.Context, output: OutputFlags) -> Terminal:
    """The terminal of this run, as the output flags want it."""
    if output.color not in ("auto", "always", "never"):
        raise DotsError(
            f"invalid --color {output.color!r}", "give auto, always or never", ExitStatus.USAGE
        )
    terminal: Terminal = context.obj
    terminal.color, terminal.quiet = output.color, output.quiet
    return terminal
