"""Messages, their tokens, and who gets to know of them.

No message can end its own turn, whatever text it has. It knows no conversation that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dotscli.errors import DotsError
from dotscli.models.template import render, segments

if TYPE_CHECKING:
    from dotscli.engine import Engine


OnPrefill = Callable[[int, int], None]


@dataclass(frozen=True)
class Message:
    """What one side said; `complete` is False for an answer that was broken off."""

    role: str
    content: str
    complete: bool = True


def encode(engine: Engine, template: str, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, ready to be answered.

    Tags that are part of a message (somebody pasted `<|endofuserprompt|>`) become plain text, so
    no message can end its own turn. Without such a tag the text is tokenized as a whole, as in
    training.

    Raises:
        DotsError: the template fails, or rewrites messages so that a tag in one can't be told
            from its own.
    """
    plain = [{"role": message.role, "content": message.content} for message in messages]
    eos, bos = engine.eos_token, engine.bos_token
    tagged = [
        message
        for message in messages
        if engine.tokenize(message.content, parse_special=True)
        != engine.tokenize(message.content, parse_special=False)
    ]
    if not tagged:
        text = render(template, plain, eos_token=eos, bos_token=bos)
        return engine.tokenize(text, parse_special=True)
    found = segments(template, plain, eos_token=eos, bos_token=bos)
    if found is None:
        raise DotsError(
            "this model's chat template rewrites messages, so the text of a control token in yours "
            f"can't be told from a real one: {_around_tag(tagged[0].content)}",
            hint="spell the token differently, or use --no-template",
        )
    tokens: list[int] = []
    for segment in found:
        tokens += engine.tokenize(segment.text, parse_special=not segment.quoted)
    return tokens


def _around_tag(content: str) -> str:
    start = max(content.find("<"), 0)
    return repr(content[start : start + 30])


class Recorder(Protocol):
    """Gets to know what happens in a conversation, as it happens."""

    def system(self, text: str) -> None:
        """Another system prompt."""

    def asked(self, kept: int, question: str) -> None:
        """A question after the first `kept` turns, which takes the place of those behind them."""

    def piece(self, text: str) -> None:
        """A part of its answer."""

    def answered(self, text: str, complete: bool) -> None:
        """All of it. Without a word of an answer the turns are as before the question."""

    def cut(self, start: int, stop: int) -> None:
        """Turns were taken away."""
