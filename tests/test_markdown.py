"""Colours for Markdown: wherever the pieces are cut, and without a change to the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.terminal.markdown import BOLD, CODE, HEADING, RESET, Tint

MARKDOWN = st.lists(
    st.sampled_from(
        ["`", "``", "```", "*", "**", "***", "# ", "##", "\n", " ", "a[i]", "~~~", "py"]
    ),
    max_size=24,
).map("".join)


def coloured(text: str, size: int = 10_000) -> str:
    tint = Tint()
    pieces = [text[n : n + size] for n in range(0, len(text), size)]
    return "".join(map(tint.feed, pieces)) + tint.end()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text\n", "plain text\n"),
        ("a **b** c", f"a {BOLD}**b**{RESET} c"),
        ("a `b` c\n", f"a {CODE}`b`{RESET} c\n"),
        ("a `**b` c", f"a {CODE}`**b`{RESET} c"),
        ("a ``b`c`` d", f"a {CODE}``b`c``{RESET} d"),
        ("# Title\ntext", f"{HEADING}# Title{RESET}\ntext"),
        ("#hashtag 3 * 4", "#hashtag 3 * 4"),
        ("```py\nx = a**b\n```\nend", f"{CODE}```py{RESET}\n{CODE}x = a**b{RESET}\n"
         f"{CODE}```{RESET}\nend"),
        ("~~~\n```\n~~~\n**b**", f"{CODE}~~~{RESET}\n{CODE}```{RESET}\n{CODE}~~~{RESET}\n"
         f"{BOLD}**b**{RESET}"),
        ("**open\nclosed", f"{BOLD}**open{RESET}\nclosed"),
        ("`open\nclosed", f"{CODE}`open{RESET}\nclosed"),
        ("f(**kw)", f"f({BOLD}**kw){RESET}"),
    ],
)  # fmt: skip
def test_what_gets_a_colour(text: str, shown: str) -> None:
    assert coloured(text) == shown


@given(MARKDOWN)
def test_the_text_stays_as_it_is(text: str) -> None:
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured(text)) == text


@given(MARKDOWN, st.integers(1, 5))
def test_the_colours_do_not_depend_on_the_cuts(text: str, size: int) -> None:
    assert coloured(text, size) == coloured(text)


def test_only_marks_are_held_back() -> None:
    tint = Tint()
    assert tint.feed("word") == "word"
    assert tint.feed(" **") == " "
    assert tint.feed("b") == f"{BOLD}**b"
    assert tint.feed("\n``") == f"{RESET}\n"
    assert tint.feed("x") == f"{CODE}``x"


@given(MARKDOWN)
def test_no_colour_is_left_behind(text: str) -> None:
    shown = coloured(text)
    assert "\x1b" not in shown or shown.rindex(RESET) == shown.rindex("\x1b")
