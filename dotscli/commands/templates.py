"""`dots templates`: the prompts that a user has written down, for `dots prompt --template`."""

from __future__ import annotations

import dataclasses

from dotscli.conversation.prompt_template import (
    names,
    read_template,
    template_path,
    write_samples,
)
from dotscli.errors import DotsError
from dotscli.folders import templates_folder
from dotscli.terminal.terminal import Terminal

COLUMNS = ("name", "prompt")
WIDEST = 60  # characters of a prompt in the list


def templates(terminal: Terminal, name: str | None, init: bool, as_json: bool) -> None:
    """List them, show one, or write samples.

    Raises:
        DotsError: there is no such template, or something can't be read or written.
    """
    folder = templates_folder(terminal.environ)
    if init:
        made = write_samples(folder)
        for path in made:
            terminal.write(f"{path}\n")
        if not made:
            terminal.note(f"nothing written: {folder} has them")
        return
    if name is not None:
        found = read_template(folder, name)
        if as_json:
            terminal.json({"name": name, **dataclasses.asdict(found)})
        else:
            terminal.write(terminal.read_file(template_path(folder, name)))
            terminal.end_line()
        return
    rows = []
    for each in names(folder):
        try:
            rows.append((each, read_template(folder, each).prompt))
        except DotsError as error:
            terminal.warn(error.message)
    if as_json:
        terminal.json([{"name": each, "prompt": prompt} for each, prompt in rows])
    elif rows:
        terminal.table(COLUMNS, [(each, _short(prompt)) for each, prompt in rows])
    else:
        terminal.note(f"no templates in {folder}; dots templates --init writes samples")


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= WIDEST else line[: WIDEST - 1] + "…"
