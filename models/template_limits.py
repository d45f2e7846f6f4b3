"""How much one chat template may use: seconds, characters, values.

Everything is refused before it is built: a template can double a value with every line. What a
single call of Python does can't be interrupted here; where the source is not known, the process
around it is bounded too (`dotscli.models.template_process`). It knows nothing of jinja2.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

MAX_TEXT = 4 * 1024**2  # characters in any one value, beyond what the messages themselves need
MAX_ITEMS = 200_000  # values inside one list or mapping, nested ones counted
MAX_SECONDS = 3.0


class RefusalError(Exception):
    """The template may not do this; the message says what."""


def too_slow(seconds: float) -> str:
    """What to say of a template whose time is over, whoever notices it."""
    return f"it runs for more than {seconds:g} s"


class Budget:
    """What one rendering may use: seconds, of which some may be spent; characters, values."""

    def __init__(self, n_chars: int, seconds: float, spent: float = 0.0) -> None:
        self.max_text = MAX_TEXT + 8 * n_chars
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds - spent

    def tick(self) -> None:
        if time.monotonic() > self.deadline:
            raise RefusalError(too_slow(self.seconds))

    def fits(self, n_chars: int, n_items: int = 0) -> None:
        if n_chars > self.max_text:
            raise RefusalError(f"it builds more than {self.max_text} characters of text")
        if n_items > MAX_ITEMS:
            raise RefusalError(f"it builds a value of more than {MAX_ITEMS} parts")

    def measure(self, value: object) -> tuple[int, int]:
        """Characters and parts of a value with all that it holds, shared parts every time."""
        n_chars = n_items = 0
        todo: list[object] = [value]
        while todo:
            part = todo.pop()
            n_items += 1
            if isinstance(part, str):
                n_chars += len(part)
            elif isinstance(part, Mapping):
                todo += [*part.keys(), *part.values()]
            elif isinstance(part, list | tuple | set | frozenset):
                todo += part
            elif isinstance(part, int) and part.bit_length() > 4096:
                raise RefusalError("it computes with numbers of more than 4096 bits")
            self.fits(n_chars, n_items + len(todo))
        return n_chars, n_items

    def operands(self, operator: str, left: Any, right: Any) -> None:
        """Refuse an operation whose result would be too large."""
        if operator == "**" and (abs(right) > 64 or abs(left) > 2**64):
            raise RefusalError("it raises a number to a large power")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | Sequence) and isinstance(times, int):
                    n_chars, n_items = self.measure(value)
                    self.fits(n_chars * times, 0 if isinstance(value, str) else n_items * times)
        if operator == "%" and isinstance(left, str):
            if re.search(r"\d{4}|\*", left):
                raise RefusalError("it pads text to a width above 999")
            self.fits(len(left) * 1000 + 8 * self.measure(right)[0])
