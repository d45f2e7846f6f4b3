"""Variation of wording: alternatives in braces, and the carelessness of people who type.

``{a|b|}`` picks one of its parts; braces nest. Everything is drawn from the Random handed in, so
a seed fixes the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

INNERMOST = re.compile(r"\{([^{}]*\|[^{}]*)\}")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Ask:
    """One question with its answer; ``short`` for one-word replies, ``chinese`` for -s prompts."""

    question: str
    answer: str
    short: str = ""
    chinese: str = ""


def spin(rng: Random, text: str) -> str:
    """Replace every ``{a|b}`` by one of its parts, innermost first."""
    while True:
        text, found = INNERMOST.subn(lambda m: rng.choice(m.group(1).split("|")), text)
        if not found:
            return text


def one_of(rng: Random, texts: Sequence[str]) -> str:
    """A spun text from a list."""
    return spin(rng, rng.choice(texts))


def capital_first(text: str) -> str:
    """First letter upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def careless(rng: Random, question: str) -> str:
    """The question as somebody might type it: lower case, no mark at the end, a 'please'."""
    if CHINESE.search(question):
        draw = rng.random()
        if draw < 0.15:
            question = question.rstrip("？。！")
        elif draw < 0.25:
            question = question.replace("？", "?").replace("，", ",")
        if rng.random() < 0.08:
            question = "请问" + question
        return question
    question = capital_first(question)
    draw = rng.random()
    if draw < 0.1:
        question = rng.choice(
            ("Please, ", "Hey, ", "Hi, ", "OK, ", "Can you tell me: ", "So, ")
        ) + (question[0].lower() + question[1:] if not question.startswith("I ") else question)
    elif draw < 0.16 and question[-1] in "?.":
        question = question[:-1] + ", please" + question[-1]
    if rng.random() < 0.25:
        question = question.rstrip("?.!")
    if rng.random() < 0.22:
        question = question.lower()
    return slip(rng, question) if rng.random() < 0.06 else question


def slip(rng: Random, question: str) -> str:
    """One letter of a longer word dropped, doubled or swapped with the next."""
    words = list(re.finditer(r"[a-zA-Z]{5,}", question))
    if not words:
        return question
    word = rng.choice(words)
    i = rng.randrange(word.start() + 1, word.end() - 1)
    middle = rng.choice(("", question[i] * 2, question[i + 1] + question[i]))
    return (
        question[:i]
        + middle
        + question[i + (2 if len(middle) == 2 and middle[0] != middle[1] else 1) :]
    )
