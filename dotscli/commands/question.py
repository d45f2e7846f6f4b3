"""What `dots prompt` asks: files, stdin and the argument, and a template around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dotscli.conversation.files import file_part
from dotscli.conversation.prompt_template import PromptTemplate
from dotscli.errors import usage
from dotscli.options.answer import AnswerFlags
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import argument

STDIN = Path("-")


def question(terminal: Terminal, text: str | None, files: Sequence[Path]) -> str:
    """What is asked: files, stdin unless it is a terminal, the argument; a blank line between.

    Stdin is read from a terminal too if the argument is `-`, which then stands for nothing else.

    Raises:
        DotsError: nothing at all (exit status 2), or a file that can't be read.
    """
    parts: list[str] = []
    asked_for_stdin = text == str(STDIN)
    for path in files:
        name, content = (
            ("stdin", terminal.read_stdin()) if path == STDIN else (path, terminal.read_file(path))
        )
        parts.append(file_part(str(name), content))
    if STDIN not in files and (asked_for_stdin or not terminal.stdin_is_tty):
        parts.append(terminal.read_stdin().removesuffix("\n"))
    parts.append("" if asked_for_stdin else argument(text or ""))
    whole = "\n\n".join(part for part in parts if part)
    if not whole.strip():
        raise usage("no question given", 'dots prompt "What is dots?"')
    return whole


def asked_with(
    terminal: Terminal, text: str | None, files: Sequence[Path], template: PromptTemplate | None
) -> str:
    """The question, in its template if there is one; one that takes no question needs none.

    Raises:
        DotsError: as `question`.
    """
    if template is None:
        return question(terminal, text, files)
    nothing = text is None and not files and terminal.stdin_is_tty
    if nothing and not template.takes_input:
        return template.filled("")
    return template.filled(question(terminal, text, files))


def with_schema(flags: AnswerFlags, schema: str) -> AnswerFlags:
    """The flags with a template's schema, unless they constrain the answer themselves."""
    given = (flags.json_schema, flags.json_schema_file, flags.grammar, flags.grammar_file)
    if not schema or any(value is not None for value in given):
        return flags
    return replace(flags, json_schema=schema)
