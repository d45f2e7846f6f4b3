"""Files that go with the next message of a chat: which they are, and how many tokens they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.conversation.files import file_part, matching
from dotscli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dotscli.engine import Engine


class Attached:
    """The files of the next message."""

    def __init__(self, terminal: Terminal, engine: Engine) -> None:
        self._terminal = terminal
        self._engine = engine
        self._parts: dict[str, tuple[str, int]] = {}  # name -> text, tokens

    def command(self, action: str, argument: str) -> str:
        """Run /file or /glob; what there is to say.

        Raises:
            DotsError: a file can't be read; nothing has changed then.
        """
        if argument == "none" and action == "file":
            self.clear()
        elif argument:
            self._add([Path(argument).expanduser()] if action == "file" else matching(argument))
        if not self._parts:
            return "No files go with the next message."
        lines = [f"{n:8,} tokens  {name}" for name, (_, n) in self._parts.items()]
        total = sum(n for _, n in self._parts.values())
        room = self._engine.n_ctx
        return "\n".join([*lines, f"{total:8,} tokens go with the next message, of {room:,}"])

    def with_text(self, text: str) -> str:
        """A message with the files before it."""
        return "\n\n".join([*(part for part, _ in self._parts.values()), text])

    def moved(self, engine: Engine) -> None:
        """Another model has been loaded, which counts in other tokens."""
        self._engine = engine
        for name, (part, _) in self._parts.items():
            self._parts[name] = part, self._n_tokens(part)

    def clear(self) -> None:
        """No files go with the next message."""
        self._parts.clear()

    def _add(self, paths: Sequence[Path]) -> None:
        found = {}
        for path in paths:
            part = file_part(str(path), self._terminal.read_file(path))
            found[str(path)] = part, self._n_tokens(part)
        self._parts |= found

    def _n_tokens(self, part: str) -> int:
        return len(self._engine.tokenize(part, parse_special=False))
