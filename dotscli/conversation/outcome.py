"""A command of a conversation as it was typed, and what is left to do when it has run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A line that began with a slash."""

    name: str
    argument: str


@dataclass(frozen=True)
class Outcome:
    """What a command leaves to do: say `text`; then an action, if there is one.

    `argument`: with `edit` the new question, "" if it is still to be typed; with `file` and `glob`
    what is to be sent; with `copy` what goes on the clipboard; with `raw` what is shown; with
    `model` what to load, with `ctx` the tokens.
    """

    text: str = ""
    action: str = ""
    stats: bool | None = None
    argument: str = ""
    markdown: bool | None = None
