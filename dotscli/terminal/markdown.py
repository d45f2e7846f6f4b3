"""Colours for Markdown while it streams: headings, bold, code. Nothing is added or taken away.

The answer stays the text that the model wrote, so it can be copied as it is; only the colour of
what a terminal shows follows its markup. Text goes out as soon as its meaning is certain: at most
a few characters (`**`, a fence) are held back. It knows no terminal.
"""

from __future__ import annotations

import re

BOLD, CODE, HEADING, RESET = "\x1b[1m", "\x1b[36m", "\x1b[1;35m", "\x1b[0m"

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6} ")
_UNDECIDED = re.compile(r" {0,3}(?:`*|~*|#{0,6})")
_PART = re.compile(r"`+|\*+|[^`*\n]+|\n")


class Tint:
    """One answer's colours; `feed` takes printable text piece by piece, `end` the rest."""

    def __init__(self) -> None:
        self._held = ""
        self._line_start = True
        self._fence = ""
        self._heading = self._bold = False
        self._ticks = 0
        self._style = ""

    def feed(self, text: str) -> str:
        """What can be shown now, with colours."""
        return self._colour(self._held + text, final=False)

    def end(self) -> str:
        """What was held back; the colours of the terminal are its own again."""
        return self._colour(self._held, final=True) + self._set("")

    def _colour(self, text: str, final: bool) -> str:
        self._held = ""
        out: list[str] = []
        at = 0
        while at < len(text):
            if self._line_start:
                line, newline, _ = text[at:].partition("\n")
                if not (newline or final) and _UNDECIDED.fullmatch(line):
                    self._held = text[at:]
                    break
                self._begin_line(line)
            match = _PART.match(text, at)
            assert match is not None
            part, at = match[0], match.end()
            if at == len(text) and part[0] in "`*" and not final:
                self._held = part  # one more of them would mean something else
                break
            out.append(self._part(part))
        return "".join(out)

    def _begin_line(self, line: str) -> None:
        self._line_start = False
        fence = _FENCE.match(line)
        if self._fence:
            if fence and fence[1].startswith(self._fence) and not line[fence.end() :].strip():
                self._ticks = -1  # the closing line is code still
        elif fence:
            self._fence = fence[1]
            self._ticks = 0
        else:
            self._heading = _HEADING.match(line) is not None

    def _part(self, part: str) -> str:
        if part == "\n":
            end = self._set("") + part
            if self._ticks < 0:
                self._fence = ""
            self._line_start, self._heading, self._bold, self._ticks = True, False, False, 0
            return end
        if self._fence:
            return self._set(CODE) + part
        if part[0] == "`":
            return self._code(part)
        if part == "**" and not self._ticks:
            return self._strong(part)
        return self._set(self._wanted()) + part

    def _code(self, ticks: str) -> str:
        if not self._ticks:
            self._ticks = len(ticks)
            return self._set(CODE) + ticks
        shown = self._set(CODE) + ticks
        if len(ticks) == self._ticks:
            self._ticks = 0
        return shown

    def _strong(self, stars: str) -> str:
        if self._bold:
            shown = self._set(self._wanted()) + stars
            self._bold = False
            return shown
        self._bold = True
        return self._set(self._wanted()) + stars

    def _wanted(self) -> str:
        if self._ticks:
            return CODE
        return HEADING if self._heading else BOLD if self._bold else ""

    def _set(self, style: str) -> str:
        if style == self._style:
            return ""
        before, self._style = self._style, style
        return (RESET if before else "") + style
