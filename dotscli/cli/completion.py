"""What the shell's Tab key offers, without the library of the command line: importing that takes
longer than anybody waits for a key.

Commands, options and fixed values are in completions.json, which docs/generate.py makes of the
commands themselves. The protocol is that of typer's scripts, which `dots --install-completion`
installs; shells that aren't known here are left to typer.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dotscli.options.values import gguf_files, template_names
from dotscli.terminal.terminal import Terminal

TREE = Path(__file__).with_name("completions.json")
DYNAMIC: dict[str, Callable[[str], list[str]]] = {
    "gguf": gguf_files,
    "template": template_names,
}

Item = tuple[str, str]  # a value and what it is


def complete(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """What to print and the exit status, None if that is typer's business."""
    shell = environ.get("_DOTS_COMPLETE", "").removeprefix("complete_")
    if shell == "bash":
        words = split_words(environ.get("COMP_WORDS", ""))
        at = int(environ.get("COMP_CWORD", "0")) if environ.get("COMP_CWORD", "").isdecimal() else 0
        items = offered(words[1:at], words[at] if at < len(words) else "")
        return "\n".join(value for value, _ in items), 0
    if shell not in ("zsh", "fish"):
        return None
    line = environ.get("_TYPER_COMPLETE_ARGS", "")
    words = split_words(line)[1:]
    begun = words.pop() if words and not line.endswith(" ") else ""
    items = offered(words, begun)
    if shell == "zsh":
        return _zsh(items), 0
    if environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return "", 0 if items else 1
    rows = ("\t".join((value, " ".join(what.split()))).rstrip("\t") for value, what in items)
    return "\n".join(rows), 0


def offered(words: Sequence[str], begun: str) -> list[Item]:
    """What may follow.

    Args:
        words: those before, without `dots`.
        begun: the beginning of the next one.
    """
    tree: dict[str, Any] = json.loads(TREE.read_text(encoding="utf-8"))
    names = [word for word in words if not word.startswith("-")]
    command = next((word for word in names if word in tree["commands"]), "")
    known = tree["commands"][command] if command else tree
    options = known["options"]
    before = words[-1] if words else ""
    for option in options:
        if before in option["names"] and option["takes_value"]:
            return _values(option["values"], begun)
    if begun.startswith("-"):
        return [
            (name, option["help"])
            for option in options
            for name in option["names"]
            if name.startswith(begun)
        ]
    if not command:
        return [(n, c["help"]) for n, c in tree["commands"].items() if n.startswith(begun)]
    place = _n_arguments(words[words.index(command) + 1 :], options)
    arguments = known["arguments"]
    return _values(arguments[min(place, len(arguments) - 1)], begun) if arguments else []


def _n_arguments(words: Sequence[str], options: Sequence[dict[str, Any]]) -> int:
    """How many of the words are arguments: no options, and no values of options."""
    takes = {n for option in options if option["takes_value"] for n in option["names"]}
    return sum(
        not word.startswith("-") and (n == 0 or words[n - 1] not in takes)
        for n, word in enumerate(words)
    )


def _values(values: Any, begun: str) -> list[Item]:
    if isinstance(values, str):
        return [(value, "") for value in DYNAMIC[values](begun)] if values else []
    return [(value, what) for value, what in values if value.startswith(begun)]


def split_words(line: str) -> list[str]:
    """The words of a line as the shell sees them; the last may have an open quote."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:
        words.append(lexer.token)
    return words


def _zsh(items: Sequence[Item]) -> str:
    def escaped(text: str) -> str:
        text = text.replace('"', '""').replace("'", "''").replace("$", "\\$")
        return text.replace("`", "\\`").replace(":", r"\\:")

    rows = "\n".join(
        f'"{escaped(value)}":"{escaped(what)}"' if what else f'"{escaped(value)}"'
        for value, what in items
    )
    return f"_arguments '*: :(({rows}))'" if items else "_files"


def main() -> None:
    """Answer and end the process, if it was started for that."""
    if "_DOTS_COMPLETE" in os.environ and (answer := complete(os.environ)) is not None:
        text, status = answer
        Terminal.system().write(f"{text}\n")
        raise SystemExit(status)
