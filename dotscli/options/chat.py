"""The options of `dots chat` that concern saved conversations, and those of `dots sessions`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import typer

from dotscli.options.shared import Out, Panel, Save, varied


@dataclass(frozen=True)
class SessionFlags:
    """Which conversation goes on, whether it is saved, and what happens when it gets long."""

    resume: Annotated[
        bool,
        typer.Option(
            "--continue", rich_help_panel=Panel.INPUT,
            help="Go on with the conversation that was used last.",
        ),
    ] = False  # fmt: skip
    session: Annotated[
        str | None,
        typer.Option(
            "--session", metavar="NAME", rich_help_panel=Panel.INPUT,
            help="Go on with this conversation, or begin one of this name.",
        ),
    ] = None  # fmt: skip
    save: Save = varied(None, help="Save the conversation as it goes on.")
    context_shift: Annotated[
        bool,
        typer.Option(
            "--context-shift", rich_help_panel=Panel.ANSWER,
            help="Forget the oldest turns where the context is full, and go on.",
        ),
    ] = False  # fmt: skip


class Action(str, Enum):
    """What `dots sessions` does."""

    LIST = "list"
    SHOW = "show"
    EXPORT = "export"
    RENAME = "rename"
    RM = "rm"
    CACHE = "cache"


@dataclass(frozen=True)
class SessionsFlags:
    """Where an export goes."""

    out: Out = varied(None, help="Write the export to this file, which must not exist yet.")
