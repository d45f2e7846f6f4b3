"""The first code block of an answer, as CommonMark delimits it: a fence of backquotes or tildes."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)


def first_code_block(text: str) -> str | None:
    """What is inside, with a line end behind each line; None if there is no block.

    A block that nobody has closed goes to the end, as in CommonMark 0.31, section 4.5.
    """
    for opening in _FENCE.finditer(text):
        mark = opening[1]
        if mark[0] == "`" and "`" in opening[2]:
            continue  # not a fence: code within a line
        lines = []
        for line in text[opening.end() + 1 :].split("\n"):
            bare = line.strip()
            if len(bare) >= len(mark) and set(bare) == {mark[0]} and len(line) - len(bare) < 4:
                break
            lines.append(line)
        else:
            if lines and not lines[-1]:
                lines.pop()
        return "".join(f"{line}\n" for line in lines)
    return None
