"""Chat templates: from messages to the text that the model was trained on.

`render` gives that text; `segments` also tells which parts of it came from the messages, so that
the tag `<|endofuserprompt|>` in something a user pasted stays text and ends nobody's turn. It
knows no tokens and no model; where a template runs is `dotscli.models.template_process`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.template_process import rendered

DOTS1_TEMPLATE = (Path(__file__).parent / "templates" / "dots1.jinja").read_text("utf-8")

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Segment:
    """A stretch of the rendered text; `quoted` if it is the content of a message."""

    text: str
    quoted: bool


def render(
    template: str,
    messages: Messages,
    *,
    add_generation_prompt: bool = True,
    eos_token: str = "",
    bos_token: str = "",
) -> str:
    """The text of a conversation.

    Args:
        template: jinja source as models carry it (`tokenizer.chat_template`).
        messages: mappings with `role` (system, user, assistant) and `content`.
        add_generation_prompt: end with what makes the model answer.
        eos_token: text of the end token, for templates that ask for it.
        bos_token: text of the start token, likewise.

    Raises:
        DotsError: the template is malformed, refuses these messages, reaches out of its sandbox,
            or uses more time, text or values than a chat template needs.
    """
    rest = {
        "add_generation_prompt": add_generation_prompt,
        "eos_token": eos_token,
        "bos_token": bos_token,
    }
    return _rendered(template, messages, rest, 0.0)[0]


def _rendered(
    template: str, messages: Messages, rest: Mapping[str, object], spent: float
) -> tuple[str, float]:
    values = {"messages": [dict(message) for message in messages], **rest}
    n_chars = sum(len(message["content"]) for message in messages)
    return rendered(template, values, n_chars, spent)


def segments(
    template: str,
    messages: Messages,
    *,
    add_generation_prompt: bool = True,
    eos_token: str = "",
    bos_token: str = "",
) -> tuple[Segment, ...] | None:
    """The same text as `render`, cut where the content of messages begins and ends.

    The content is rendered between two characters for private use that occur nowhere else. None
    if the template does something to the content that these marks would change (other than
    stripping it): then nobody can tell which part of the text is whose. All renderings together
    have the time of one.

    Raises:
        DotsError: as `render`.
    """

    rest = {
        "add_generation_prompt": add_generation_prompt,
        "eos_token": eos_token,
        "bos_token": bos_token,
    }
    spent = 0.0

    def text_of(chosen: Messages) -> str:
        nonlocal spent
        text, took = _rendered(template, chosen, rest, spent)
        spent += took
        return text

    whole = text_of(messages)
    begin, end = _unused_characters(template + whole + "".join(m["content"] for m in messages))
    for change in (str, str.strip):
        contents = [change(message["content"]) for message in messages]
        marked = text_of(
            [
                {**message, "content": begin + content + end}
                for message, content in zip(messages, contents, strict=True)
            ]
        )
        found = _cut(marked, begin, end)
        # Every quoted part must be some whole content: a template may drop or repeat messages,
        # but one that cuts into them could let half a tag through.
        if found is not None and "".join(segment.text for segment in found) == whole:
            quoted = {segment.text for segment in found if segment.quoted}
            if quoted <= set(contents):
                return found
    return None


def _unused_characters(text: str) -> tuple[str, str]:
    unused = (char for code in range(0xE000, 0xF8FF) if (char := chr(code)) not in text)
    begin, end = next(unused, None), next(unused, None)
    if begin is None or end is None:
        raise DotsError(
            "the messages use every character of Unicode's private use area",
            hint="remove some of them, or use --no-template",
        )
    return begin, end


def _cut(marked: str, begin: str, end: str) -> tuple[Segment, ...] | None:
    """The segments of a marked text; None where the marks don't come in pairs."""
    found: list[Segment] = []
    before, *rest = marked.split(begin)
    if end in before:
        return None
    found.append(Segment(before, quoted=False))
    for part in rest:
        content, mark, after = part.partition(end)
        if not mark or end in after:
            return None
        found.append(Segment(content, quoted=True))
        found.append(Segment(after, quoted=False))
    return tuple(segment for segment in found if segment.text)
