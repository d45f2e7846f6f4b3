"""Markdown on a terminal: what blocks look like, that nothing is lost, and blocks that stream."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotscli.terminal.live import DRAW_SHARE, Live, n_rows
from dotscli.terminal.markdown import MAX_BLOCK, block_rows, ended, split_blocks
from dotscli.terminal.text import COLOUR, cells
from tests.transcript import dots, on_a_terminal, plain

LONG_CODE = "```python\n" + "x = " + " + ".join(["something"] * 20) + "\n```"
PARTS = st.lists(
    st.sampled_from(
        ["`", "``", "```", "```py\n", "*", "**", "# ", "##", "\n", "\n\n", " ", "    ", "a[i]",
         "~~~", "word", "- ", "1. ", "> ", "| a | b |\n", "|--|--|\n", "<b>", "</div>",
         "List<String>", "中文", "![i](u)", "[l](u)", "[r]: u\n", "\\(x\\)", "&amp;",
         "---\n", "===\n", "\t"]
    ),
    max_size=30,
).map("".join)  # fmt: skip


def rows(text: str, width: int = 40) -> list[str]:
    """Without colours, a blank line between blocks."""
    found: list[str] = []
    for block in split_blocks(text):
        found += [""] * bool(found) + block_rows(block, width, colour=False)
    return found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", ["plain text"]),
        ("a **b** `c` *d* ~~e~~", ["a b c d e"]),
        ("# One\n## Two\ntext", ["One", "", "Two", "", "text"]),
        ("Roses\nare red", ["Roses", "are red"]),
        ("a List<String> and <b>x</b>", ["a List<String> and <b>x</b>"]),
        ("<div>\nx\n</div>", ["<div>", "x", "</div>"]),
        (r"\(a_1\) and \[x\]", [r"\(a_1\) and \[x\]"]),
        ("[1]: http://a.b/c", ["[1]: http://a.b/c"]),
        ("see [here](http://a.b)", ["see here (http://a.b)"]),
        ("![alt](http://a.b/c.png)", ["!alt (http://a.b/c.png)"]),
        ("- a\n- b\n  1. c", [" • a", " • b", "    1 c"]),
        ("3. c\n4. d", [" 3 c", " 4 d"]),
        ("> said", ["▌ said"]),
        ("| a | b |\n|---|--:|\n| xx | 12 |", [" a    b", " ──────", " xx  12"]),
        ("```\n  kept  as it is\n```", ["  kept  as it is"]),
        ("```py\nopen", ["open"]),
        ("a\n\n---\n\nb", ["a", "", "-" * 40, "", "b"]),
    ],
)
def test_what_it_looks_like(text: str, shown: Sequence[str]) -> None:
    assert [row.replace("━", "─") for row in rows(text)] == [r.replace("━", "─") for r in shown]


def test_words_are_not_broken_at_the_edge_and_wide_characters_count_twice() -> None:
    text = "Considerable words of different length, " * 5 + "中文字符" * 30
    found = rows(text, 30)
    assert max(map(cells, found)) <= 30
    assert "".join(found).replace(" ", "") == text.replace(" ", "")
    assert set(re.findall(r"[a-z]+", "\n".join(found))) == set(re.findall(r"[a-z]+", text))


@pytest.mark.parametrize("width", [20, 40, 80])
def test_cells_of_a_table_are_wrapped_and_never_cut(width: int) -> None:
    text = f"| {'中文字符' * 12} | one |\n|---|---|\n| {'x' * 50} | {'words of it ' * 6} |"
    shown = "".join("".join(rows(text, width)).split())
    assert sum(shown.count(c) for c in "中文字符") == 48
    assert shown.count("x") == 50
    assert "…" not in shown


@pytest.mark.parametrize(("n", "width"), [(5, 20), (12, 20), (30, 40), (60, 80)])
def test_a_table_of_more_columns_than_fit_is_shown_as_it_is(n: int, width: int) -> None:
    cells_of = ["|".join(f"{name}{i}" for i in range(n)) for name in ("c", "v")]
    text = f"|{cells_of[0]}|\n|{'---|' * n}\n|{cells_of[1]}|"
    shown = "".join("".join(block_rows(text, width, colour=False)).split())
    assert all(f"c{i}" in shown and f"v{i}" in shown for i in range(n))


def test_code_is_not_wrapped_and_leaves_no_spaces_to_copy() -> None:
    (row,) = block_rows(LONG_CODE, 40, colour=False)
    assert row == LONG_CODE.split("\n")[1]
    coloured = block_rows("```python\nif x:\n    return 'y'\n```", 40, colour=True)
    assert [COLOUR.sub("", line) for line in coloured] == ["if x:", "    return 'y'"]
    assert any(line != COLOUR.sub("", line) for line in coloured)
    assert not re.search(r"[\[;](4[0-8]|10\d)[;m]", "".join(coloured))  # no background


@pytest.mark.parametrize("block", ["| a |\n|---|\n| b |", "- a\n- b", "> a", "# a", "1. a"])
def test_a_block_begins_and_ends_with_a_row_that_is_seen(block: str) -> None:
    for colour in (False, True):
        shown = [COLOUR.sub("", row) for row in block_rows(block, 40, colour)]
        assert shown[0].strip()
        assert shown[-1].strip()


@given(PARTS, st.sampled_from([20, 40, 80]))
def test_nothing_of_the_text_is_lost(text: str, width: int) -> None:
    words = re.findall(r"word|a\[i\]|List|String|中文|amp|u|x", re.sub(r"(```|~~~).*", "", text))
    shown = "".join("".join(rows(text, width)).split())
    at = 0
    if "```" in text or "~~~" in text or "|" in text:
        return  # the word behind a fence names a language; a table row may have too many cells
    for word in words:
        if word == "amp":
            continue
        found = shown.find(word, at)
        assert found >= 0, (word, shown)
        at = found + len(word)


@given(PARTS)
def test_a_block_that_has_ended_does_not_change(text: str) -> None:
    whole = split_blocks(text)
    for cut in range(len(text)):
        done, rest = ended(text[:cut])
        assert whole[: len(done)] == done
        assert split_blocks(rest + text[cut:]) == whole[len(done) :]


@pytest.mark.parametrize(
    "text",
    ["> " * 5000, "[" * 15000, "*a " * 6000, "`" * 15000, "![" * 7000, "- " * 5000, "|" * 9000],
)
def test_text_that_is_hard_to_parse_is_drawn_in_bounded_time(text: str) -> None:
    since = time.perf_counter()
    assert block_rows(text, 80, colour=True)
    assert time.perf_counter() - since < 5
    assert block_rows("x" * (MAX_BLOCK + 1), 80, colour=True) == ["x" * (MAX_BLOCK + 1)]


# While it streams


class Pty:
    """A terminal of so many rows, with what has left it at the top."""

    def __init__(self, columns: int = 40, n_rows: int = 10) -> None:
        self.size = columns, n_rows
        self.screen = pyte.HistoryScreen(columns, n_rows, history=100_000)
        self.stream = pyte.Stream(self.screen)
        self.n_written = 0

    def write(self, text: str) -> None:
        self.n_written += len(text)
        self.stream.feed(text.replace("\n", "\r\n"))

    @property
    def rows(self) -> list[str]:
        """Everything that can be seen or scrolled to, without the blank rows below."""
        before = [
            "".join(row[n].data for n in range(self.size[0])) for row in self.screen.history.top
        ]
        return (
            "\n".join(row.rstrip() for row in [*before, *self.screen.display]).rstrip().split("\n")
        )


def streamed(pieces: Iterable[str], pty: Pty) -> None:
    live = slow(pty)
    for piece in pieces:
        live.feed(piece)
    live.end()


def slow(pty: Pty) -> Live:
    """Every piece is drawn: they come a second apart, and drawing takes no time."""
    clock = itertools.count()
    return Live(pty.write, lambda: pty.size, colour=False, clock=lambda: float(next(clock) // 2))


def cut(text: str, size: int) -> list[str]:
    return [text[n : n + size] for n in range(0, len(text), size)]


@settings(max_examples=60, deadline=None)
@given(PARTS, st.integers(1, 7), st.sampled_from([(40, 10), (20, 4), (80, 24)]))
def test_however_the_pieces_come_the_screen_ends_the_same(
    text: str, size: int, screen: tuple[int, int]
) -> None:
    whole, pieces = Pty(*screen), Pty(*screen)
    streamed([text], whole)
    streamed(cut(text, size), pieces)
    assert pieces.rows == whole.rows


def test_an_answer_is_in_the_scrollback_once_and_complete() -> None:
    numbers = [f"Point {n} of a long answer." for n in range(60)]
    code = "\n".join(f"line_{n} = {n}" for n in range(60))
    text = "# Title\n\n" + "\n\n".join(numbers) + f"\n\n```python\n{code}\n```\n\n- one\n- two\n"
    pty = Pty(40, 10)
    streamed(cut(text, 5), pty)
    assert pty.rows == rows(text, 40)


def test_the_open_block_is_seen_as_it_grows() -> None:
    pty = Pty(40, 5)
    live = slow(pty)
    live.feed("| a | b |\n|---|---|\n| 1 | 2 |\n")
    assert pty.rows == [" a  b", " ────", " 1  2"] or pty.rows[0] == " a   b"
    for n in range(20):
        live.feed(f"| {n} | {n} |\n")
        assert f"{n}" in pty.rows[-1]
        assert len(pty.rows) <= 5
    live.end()
    assert len(pty.rows) == 23


def test_a_terminal_that_becomes_narrower_is_not_littered() -> None:
    pty = Pty(40, 20)
    live = slow(pty)
    live.feed("short")
    live.feed(" words")
    pty.size = 30, 20
    live.feed(" and more of them than a row has room for")
    live.end()
    assert pty.rows == ["short words and more of them", "than a row has room for"]


def test_a_line_below_says_how_it_goes_and_leaves_nothing() -> None:
    pty = Pty(40, 6)
    n_tokens = itertools.count(1)
    clock = itertools.count()
    live = Live(
        pty.write, lambda: pty.size, False, lambda: f"{next(n_tokens)} tok · " + "x" * 60,
        clock=lambda: float(next(clock) // 2),
    )  # fmt: skip
    for n in range(20):
        live.feed(f"word {n}\n")
        assert pty.rows[-1] == (f"{n + 1} tok · " + "x" * 60)[:39]
        assert pty.rows[-2] == f"word {n}"
        assert len(pty.rows) <= 6
    live.end()
    assert pty.rows == [f"word {n}" for n in range(20)]


def test_control_characters_of_an_answer_do_nothing() -> None:
    pty = Pty()
    streamed(["a\x1b[2J\x1b]52;c;eA==\x07b\r", "\n\n```\n\x1b[31mred\n```"], pty)
    assert pty.rows == ["a␛[2J␛]52;c;eA==␇b", "", "␛[31mred"]


def test_drawing_takes_a_small_part_of_the_time() -> None:
    class Clock:
        """Every look at it takes 10 ms, as if drawing did."""

        now = 0.0

        def __call__(self) -> float:
            self.now += 0.01
            return self.now

    clock, pty = Clock(), Pty()
    live = Live(pty.write, lambda: pty.size, colour=False, clock=clock)
    n_drawn = 0
    for _ in range(1000):
        before = pty.n_written
        live.feed("word ")
        n_drawn += pty.n_written > before
    assert 0 < n_drawn <= 1000 / DRAW_SHARE + 1


@pytest.mark.parametrize(
    ("text", "columns", "n"),
    [("", 5, 1), ("12345", 5, 1), ("123456", 5, 2), ("aaa中", 2, 3), ("中中中", 5, 2),
     ("e\u0301" * 5, 5, 1), ("\x1b[1m12345\x1b[0m", 5, 1), ("\x1b[1m中中中\x1b[0m", 5, 2)],
)  # fmt: skip
def test_rows_that_a_line_takes(text: str, columns: int, n: int) -> None:
    assert n_rows(text, columns) == n


# At the prompt

TABLE = '"# Title\\n\\n| a | b |\\n|---|---|\\n| 1 | **2** |\\n"'


def test_answers_on_a_terminal_are_drawn(tiny_gguf: Path, tmp_path: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "hello", "--grammar", f"root ::= {TABLE}", "-c", "512")
    with on_a_terminal(*words, "--markdown", NO_COLOR="1") as screen:
        assert screen.wait() == 0
        shown = plain(screen.seen)
        assert "Title" in shown
        assert "**" not in shown
        assert "|" not in shown
        assert " tok · " in shown
    with on_a_terminal(*words, NO_COLOR="1") as screen:  # what a grammar makes is as it is
        assert screen.wait() == 0
        assert "| 1 | **2** |" in plain(screen.seen)
    assert dots(*words, "--markdown").stdout == "# Title\n\n| a | b |\n|---|---|\n| 1 | **2** |\n"


def test_raw_shows_what_the_model_has_written(tiny_gguf: Path, tmp_path: Path) -> None:
    words = ("chat", "-m", tiny_gguf, "--grammar", f"root ::= {TABLE}", "-c", "512", "--markdown")
    with on_a_terminal(*words, NO_COLOR="1", XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for(">>>")
        screen.type("hello\r")
        assert "**2**" not in screen.wait_for(" · prefill")
        screen.wait_for(">>>")
        screen.type("/raw\r")
        screen.wait_for("| 1 | **2** |")
        screen.wait_for(">>>")
        screen.type("/raw on\r")
        screen.wait_for("as the model writes them")
        screen.wait_for(">>>")
        screen.type("again\r")
        screen.wait_for("| 1 | **2** |")
        screen.wait_for(">>>")
        screen.type("/exit\r")
        assert screen.wait() == 0
