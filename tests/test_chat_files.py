"""Files that go with a message of a chat, and the clipboard."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest

from dotscli.conversation import files
from dotscli.conversation.files import matching
from dotscli.errors import DotsError
from tests.transcript import dots, on_a_terminal

GRAMMAR = ("--grammar", 'root ::= "yes"')
CODE = ("--grammar", 'root ::= "see\\n```\\nx = 1\\n```\\n"')


def turns(tmp_path: Path) -> list[str]:
    shown = dots("sessions", "show", "s", "--json", environ={"XDG_STATE_HOME": str(tmp_path)}).json
    return [turn["content"] for turn in shown["turns"]]


def chat(tmp_path: Path, model: Path, lines: str, *words: str) -> str:
    words = ("chat", "-m", str(model), "--session", "s", "-c", "2048", *(words or GRAMMAR))
    done = dots(*words, stdin=lines, environ={"XDG_STATE_HOME": str(tmp_path)})
    assert done.exit_status == 0
    return done.stderr


def test_files_go_with_the_next_message_only(tiny_gguf: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("hello\n")
    two.write_text("world")
    lines = f"/file {one}\n/file {two}\n/file\nand?\nagain\n"
    said = chat(tmp_path, tiny_gguf, lines)
    assert f"tokens  {one}" in said
    assert "tokens go with the next message, of 2,048" in said
    asked = turns(tmp_path)[::2]
    assert asked == [
        f"--- File: {one} ---\nhello\n\n--- File: {two} ---\nworld\n\nand?", "again"
    ]  # fmt: skip


def test_a_pattern_stands_for_files_in_order(tiny_gguf: Path, tmp_path: Path) -> None:
    for name in ("b/x.py", "a.py", "b/c/y.py", "b/z.txt"):
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("hello")
    names = [str(path.relative_to(tmp_path)) for path in matching(f"{tmp_path}/src/**/*.py")]
    assert names == ["src/a.py", "src/b/c/y.py", "src/b/x.py"]
    said = chat(tmp_path, tiny_gguf, f"/glob {tmp_path}/src/**/*.py\n/file none\nhello\n")
    assert said.count("tokens  ") == 3
    assert "No files go with the next message." in said
    assert turns(tmp_path)[0] == "hello"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/file /no/such/file", "/no/such/file"),
        ("/glob", "needs a pattern"),
        ("/glob /no/such/*", "no file matches"),
        ("/copy", "no answer yet"),
        ("/copy all", "unknown: /copy all"),
    ],
)
def test_what_can_t_be_done_is_said(
    line: str, message: str, tiny_gguf: Path, tmp_path: Path
) -> None:
    said = chat(tmp_path, tiny_gguf, f"{line}\nhello\n")
    assert "error: " in said
    assert message in said


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 3)
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text("")
    with pytest.raises(DotsError, match="too many files, more than 3"):
        matching(f"{tmp_path}/*.txt")
    assert len(matching(f"{tmp_path}/[012].txt")) == 3


def test_a_message_that_does_not_fit_keeps_its_files(tiny_gguf: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("hello and the world. " * 1000)
    said = chat(tmp_path, tiny_gguf, f"/file {long}\nand?\n/file\n/file none\nhello\n")
    assert "the context holds 2,048" in said
    assert said.count("tokens go with the next message") == 2
    assert turns(tmp_path) == ["hello", "yes"]


def test_the_clipboard_is_the_terminal_s(tiny_gguf: Path, tmp_path: Path) -> None:
    with on_a_terminal("chat", "-m", tiny_gguf, *CODE, XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for(">>>")
        screen.type("hello\r")
        screen.wait_for(" tok · ")
        screen.wait_for(">>>")
        screen.type("/copy code\r")
        data = base64.b64encode(b"x = 1\n").decode()
        seen = ""
        while f"\x1b]52;c;{data}\x07" not in seen:
            assert screen._read(30 + time.monotonic())
            seen += screen.seen
        screen.type("/exit\r")
        assert screen.wait() == 0
    said = chat(tmp_path, tiny_gguf, "hello\n/copy\n")
    assert "no terminal here with a clipboard" in said
