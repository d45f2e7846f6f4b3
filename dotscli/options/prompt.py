"""The options of `dots prompt` alone, as one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dotscli.options.shared import Out, Panel, Save, varied
from dotscli.options.values import template_names


@dataclass(frozen=True)
class OneShotFlags:
    """What becomes of the answer."""

    no_template: Annotated[
        bool,
        typer.Option(
            "--no-template", rich_help_panel=Panel.INPUT,
            help="Continue the raw text; control tokens are parsed.",
        ),
    ] = False  # fmt: skip
    template: Annotated[
        str | None,
        typer.Option(
            "--template", metavar="NAME", rich_help_panel=Panel.INPUT,
            autocompletion=template_names,
            help="Ask with a template of your own; dots templates lists them.",
        ),
    ] = None  # fmt: skip
    extract: Annotated[
        bool,
        typer.Option(
            "--extract", "-x", rich_help_panel=Panel.OUTPUT,
            help="Print only the first code block of the answer.",
        ),
    ] = False  # fmt: skip
    no_stream: Annotated[
        bool,
        typer.Option(
            "--no-stream", rich_help_panel=Panel.OUTPUT,
            help="Print the answer when it has ended, not as it comes.",
        ),
    ] = False  # fmt: skip
    save: Save = varied(
        None, help="Keep what the context holds, where reading it again would take longer."
    )
    out: Out = varied(None, help="Write the answer to this file, which must not exist yet.")
