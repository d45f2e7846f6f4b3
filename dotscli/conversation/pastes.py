"""The text of a message as it is typed: when it has ended, and long pastes that are shown short."""

from __future__ import annotations

BLOCK = '"""'
LONG_LINES, LONG_TEXT = 8, 1000  # lines and characters from which on a paste is shown short
MAX_PASTES = 1000


class Pastes:
    """Long texts that were pasted, each under a name that stands for it in the line."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def shown(self, text: str) -> str:
        """What to put into the line for a paste: itself, or a name for it."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        n_lines = text.count("\n") + 1
        if (n_lines < LONG_LINES and len(text) < LONG_TEXT) or len(self._texts) >= MAX_PASTES:
            return text
        what = f"{n_lines:,} lines" if n_lines > 1 else f"{len(text):,} characters"
        name = f"[paste {len(self._texts) + 1}: {what}]"
        self._texts[name] = text
        return name

    def expanded(self, line: str) -> str:
        """A line with the texts in the places of their names; what a paste says stays as it is."""
        found, rest = "", line
        while True:
            at, name = min(((rest.find(n), n) for n in self._texts if n in rest), default=(-1, ""))
            if at < 0:
                return found + rest
            found += rest[:at] + self._texts[name]
            rest = rest[at + len(name) :]


def ended(text: str) -> bool:
    """Whether Enter sends it: no backslash at its end, no block of three quotes open."""
    if text.startswith(BLOCK):
        return text.count(BLOCK) > 1
    return not text.endswith("\\")


def joined(text: str) -> str:
    """The message without what only held its lines together."""
    if text.startswith(BLOCK):
        return text.removeprefix(BLOCK).rstrip().removesuffix(BLOCK).strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\")
