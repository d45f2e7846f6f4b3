"""The terminal as a value: what is written where, and what a terminal is kept from obeying."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.errors import DotsError
from dotscli.terminal.progress import Progress
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import COLOUR, cells, format_bytes, format_seconds, printable, wrapped
from tests.transcript import Screen

TRICKY = (
    "a[i] [/] [bold ] \t漢字 😀 \x1b[2J\x1b]0;title\x07 \x9b2J \u202eevil\u202c \x08\x7f\r\n"
    + "x" * 300
)


def terminal(tty: bool = False, **environ: str) -> Terminal:
    stream = Screen if tty else io.StringIO
    return Terminal(io.StringIO(), stream(), stream(), environ=environ)


def test_a_pipe_gets_every_byte() -> None:
    t = terminal()
    t.write(TRICKY)
    assert t.stdout.getvalue() == TRICKY


def test_a_terminal_can_only_print() -> None:
    t = terminal(tty=True)
    t.write(TRICKY)
    shown = t.stdout.getvalue()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert "a[i] [/] [bold ] \t漢字 😀 ␛[2J" in shown
    assert shown.endswith("x" * 300)


@given(st.text())
def test_printable_keeps_newlines_and_tabs_and_printing_characters(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert [c for c in shown if c in "\n\t"] == [c for c in text if c in "\n\t"]
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("color", "tty", "environ", "expected"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", False, {"FORCE_COLOR": "1"}, True),
        ("auto", True, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_when_there_is_colour(
    color: str, tty: bool, environ: dict[str, str], expected: bool
) -> None:
    t = Terminal(io.StringIO(), io.StringIO(), io.StringIO(), environ=environ, color=color)
    assert t.colour(tty) is expected


def test_an_error_is_one_line_and_its_hint_another() -> None:
    t = terminal()
    t.error("first\nsecond", "try\nthis")
    assert t.stderr.getvalue() == "error: first second\nhint: try this\n"
    assert t.stdout.getvalue() == ""


def test_quiet_keeps_errors_and_warnings() -> None:
    t = terminal()
    t.quiet = True
    t.note("note")
    with t.progress("work", 10) as progress:
        progress.update(5)
    t.warn("careful")
    t.error("wrong")
    assert t.stderr.getvalue() == "warning: careful\nerror: wrong\n"


def test_a_note_never_stands_behind_a_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dotscli.terminal.progress.QUIET_S", 0)
    t = terminal(tty=True, NO_COLOR="1")
    with t.progress("work", 10) as progress:
        progress.update(5)
        t.note("note")
        progress.update(6)
    assert re.fullmatch(
        r"\rwork  50 %[^\r]*\x1b\[K\r\x1b\[Knote\n\rwork  60 %.*", t.stderr.getvalue(), re.DOTALL
    )


def test_a_note_never_breaks_into_the_line_of_an_answer() -> None:
    t = terminal(tty=True, NO_COLOR="1")
    t.write("half a line")
    t.note("note")
    assert t.stdout.getvalue() == "half a line\n"


def test_the_last_line_ends_once() -> None:
    t = terminal()
    for text in ("a", "b\n"):
        t.write(text)
        t.end_line()
        t.end_line()
    assert t.stdout.getvalue() == "a\nb\n"


def test_a_table_is_aligned_and_never_cut() -> None:
    t = terminal()
    t.table(("name", "size"), [("漢字", "1"), ("x" * 200, "22")], right=("size",))
    lines = t.stdout.getvalue().splitlines()
    assert lines[0] == "name" + " " * 198 + "size"
    assert lines[1] == "漢字" + " " * 198 + "   1"
    assert lines[2] == "x" * 200 + "    22"


TITLES, NUMBERS = ("tensors", "types", "size", "share"), ("size", "share")
ROWS = [
    ("attention", "Q5_K, Q6_K and a few others", "1.50 GiB", "20.2 %"),
    ("漢字", "Q4_K", "88.0 GiB", "9.1 %"),
]


def on_columns(columns: int, monkeypatch: pytest.MonkeyPatch, **environ: str) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    t = terminal(tty=True, **environ)
    t.table(TITLES, ROWS, right=NUMBERS)
    return t.stdout.getvalue()


def test_a_table_that_fits_looks_as_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    t = terminal()
    t.table(TITLES, ROWS, right=NUMBERS)
    assert on_columns(80, monkeypatch, NO_COLOR="1") == t.stdout.getvalue()
    coloured = on_columns(80, monkeypatch, TERM="xterm")
    assert coloured.startswith("\x1b[1mtensors")
    assert COLOUR.sub("", coloured).split() == t.stdout.getvalue().split()


def test_a_table_on_a_narrow_terminal_wraps_words_and_no_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert on_columns(46, monkeypatch, NO_COLOR="1").splitlines() == [
        "tensors    types                  size   share",
        "attention  Q5_K, Q6_K and a   1.50 GiB  20.2 %",
        "           few others",
        "漢字       Q4_K               88.0 GiB   9.1 %",
    ]
    assert on_columns(30, monkeypatch, NO_COLOR="1").splitlines() == [
        "attention",
        "  types  Q5_K, Q6_K and a few",
        "         others",
        "  size   1.50 GiB",
        "  share  20.2 %",
        "漢字",
        "  types  Q4_K",
        "  size   88.0 GiB",
        "  share  9.1 %",
    ]


def test_a_cell_is_text_and_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    t = terminal(tty=True, TERM="xterm")
    t.table(("name", "[bold]"), [("a[i] [/] :smile:", "\x1b[2J\u202e")])
    assert "a[i] [/] :smile:  ␛[2J" in t.stdout.getvalue()
    assert "[bold]" in t.stdout.getvalue()


def test_a_sentence_wraps_between_words_but_not_before_its_unit() -> None:
    text = "24 GiB are free of 64 GiB with -c 512 and /a/path/that/is/longer/than/a/line"
    assert wrapped(text, 19, "- ", "  ").splitlines() == [
        "- 24 GiB are free",
        "  of 64 GiB with",
        "  -c 512 and",
        "  /a/path/that/is/longer/than/a/line",
    ]


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("漢字", 4), ("e\u0301", 1), ("👨\u200d👩\u200d👧", 2), ("🇩🇪", 2)],
)
def test_columns_that_a_text_takes(text: str, width: int) -> None:
    assert cells(text) == width


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(redraw: bool, width: int = 80) -> tuple[Progress, Clock, list[str]]:
    clock, written = Clock(), []
    work = Progress(
        "copying", 1000, "B", write=written.append, redraw=redraw, width=lambda: width, clock=clock
    )
    return work, clock, written


def test_progress_off_a_terminal_is_a_line_per_tenth() -> None:
    work, clock, written = progress(redraw=False)
    with work:
        for done in range(1001):
            clock.now = done / 10
            work.update(done)
    assert len(written) == 10
    assert all(line.endswith("\n") and "\r" not in line and "\x1b" not in line for line in written)
    assert written[4] == "copying  50 % · 500 B of 1000 B · 10 B/s · 50 s left\n"


def test_slow_progress_off_a_terminal_is_a_line_every_thirty_seconds() -> None:
    work, clock, written = progress(redraw=False)
    with work:
        for second in range(100):
            clock.now = second
            work.update(second / 100)
    assert len(written) == 3


def test_quick_work_shows_nothing() -> None:
    for redraw in (True, False):
        work, clock, written = progress(redraw=redraw)
        with work:
            for done in range(0, 1001, 100):
                clock.now = done / 2500
                work.update(done)
        assert written == []


def test_progress_on_a_terminal_redraws_one_line_and_wipes_it() -> None:
    work, clock, written = progress(redraw=True, width=30)
    with work:
        for done in range(0, 1001, 10):
            clock.now = done / 100
            work.update(done)
    assert len(written) > 20
    assert all(line.startswith("\r") and "\n" not in line for line in written)
    assert all(len(line) <= 30 + len("\r\x1b[K") - 1 for line in written)
    assert written[-1] == "\r\x1b[K"


def test_a_wide_terminal_has_room_for_a_bar() -> None:
    work, clock, written = progress(redraw=True, width=100)
    with work:
        for done in (0, 500, 1000):
            clock.now = done / 100 + 1
            work.update(done)
    half, full = (line.removesuffix("\x1b[K").split()[-1] for line in written[1:3])
    assert half.startswith("━" * 14)
    assert 14 <= half.count("━") <= 15
    assert full == "━" * 30
    assert all("\n" not in line and len(line) <= 104 for line in written)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (88 * 2**30, "88.0 GiB"),
     (286e9, "266 GiB"), (3 * 2**40, "3.00 TiB")],
)  # fmt: skip
def test_bytes_as_people_read_them(nbytes: float, text: str) -> None:
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.83, "0.8 s"), (42.4, "42 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_seconds_as_people_read_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_invalid_utf8_is_replaced_with_a_warning() -> None:
    t = terminal()
    assert t.decode(b"caf\xe9", "notes.txt") == "caf\ufffd"
    assert t.stderr.getvalue() == "warning: notes.txt is not valid UTF-8: characters replaced: 1\n"
    assert t.decode("caf\ufffd".encode(), "notes.txt") == "caf\ufffd"


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"GGUF\0\0")
    with pytest.raises(DotsError, match=r"model\.bin is binary"):
        terminal().read_file(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DotsError, match=r"notes\.txt can't be read: No such file"):
        terminal().read_file(tmp_path / "notes.txt")


def test_notes_on_a_terminal_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Screen()
    terminal = Terminal(io.StringIO(), Screen(), stream, environ={"NO_COLOR": "1"})
    terminal.note(
        "a note of more words than forty columns can hold, with a /very/long/path/of/its/own"
    )
    lines = stream.getvalue().splitlines()
    assert lines == [
        "a note of more words than forty columns",
        "can hold, with a",
        "/very/long/path/of/its/own",
    ]
