"""What `dots prompt` makes of an answer: its code block, a file, all at once; short schemas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dotscli.conversation.code_block import first_code_block
from dotscli.errors import DotsError
from dotscli.models.short_schema import full_schema
from tests.transcript import dots

CODE = 'root ::= "see\\n```py\\nprint(1)\\n\\n```\\nmore\\n"'
PLAIN = 'root ::= "no code"'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a\n```py\nx = 1\n```\nb\n```\ny\n```\n", "x = 1\n"),
        ("~~~\na\n```\nb\n~~~", "a\n```\nb\n"),
        ("````\n```\ninner\n```\n````\n", "```\ninner\n```\n"),
        ("```\nnever closed\nat all\n", "never closed\nat all\n"),
        ("```\n```", ""),
        ("   ```\n  x\n   ```", "  x\n"),
        ("    ```\nindented\n", None),
        ("a ``` b\n", None),
        ("```a```\n", None),
        ("```py\nx\n`````\ny", "x\n"),
        ("no code", None),
        ("", None),
    ],
)
def test_the_first_code_block(text: str, code: str | None) -> None:
    assert first_code_block(text) == code


def test_a_schema_in_one_line() -> None:
    schema = json.loads(full_schema("name, age int, note: what, else"))
    assert schema["properties"] == {
        "name": {"type": "string"}, "age": {"type": "integer"},
        "note": {"type": "string", "description": "what"}, "else": {"type": "string"},
    }  # fmt: skip
    assert schema["required"] == ["name", "age", "note", "else"]
    lines = json.loads(full_schema("name: first, last\nscore float\nok bool"))
    assert [p["type"] for p in lines["properties"].values()] == ["string", "number", "boolean"]
    assert lines["properties"]["name"]["description"] == "first, last"
    assert full_schema(' {"type": "object"} ') == '{"type": "object"}'


@pytest.mark.parametrize("text", ["a b c", "a, a", "a date", "1+1", "a int int", ",", "a;b"])
def test_what_is_no_field_is_refused(text: str) -> None:
    with pytest.raises(DotsError):
        full_schema(text)


def test_an_answer_follows_a_short_schema(tiny_gguf: Path) -> None:
    done = dots("prompt", "-m", tiny_gguf, "hello", "-j", "age int, ok bool", "-n", "60")
    found = json.loads(done.stdout)
    assert isinstance(found["age"], int)
    assert isinstance(found["ok"], bool)
    wrong = dots("prompt", "-m", tiny_gguf, "hello", "-j", "age year")
    assert (wrong.exit_status, wrong.stdout) == (2, "")
    assert "'age year' is no field of a schema" in wrong.stderr


def test_only_the_code_is_printed(tiny_gguf: Path, tmp_path: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "hello", "--grammar", CODE)
    assert dots(*words, "-x").stdout == "print(1)\n\n"
    assert dots(*words, "-x", tty=True).stdout.replace("\r", "") == "print(1)\n\n"
    found = dots(*words, "-x", "--json").json
    assert found["code"] == "print(1)\n\n"
    assert found["text"].startswith("see\n")
    out = tmp_path / "x.py"
    done = dots(*words, "-x", "-o", out)
    assert (done.stdout, out.read_text()) == ("", "print(1)\n\n")


def test_no_code_is_an_error_and_the_answer_is_not_lost(tiny_gguf: Path) -> None:
    done = dots("prompt", "-m", tiny_gguf, "hello", "--grammar", PLAIN, "-x")
    assert (done.exit_status, done.stdout) == (1, "")
    assert "no code\n" in done.stderr
    assert "error: the answer has no code block" in done.stderr
    found = dots("prompt", "-m", tiny_gguf, "hello", "--grammar", PLAIN, "-x", "--json").json
    assert found["code"] is None


def test_an_answer_into_a_file_replaces_none(tiny_gguf: Path, tmp_path: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "hello", "--grammar", PLAIN, "-o", tmp_path / "a.txt")
    done = dots(*words)
    assert (done.stdout, (tmp_path / "a.txt").read_text()) == ("", "no code\n")
    again = dots(*words)
    assert again.exit_status == 1
    assert "already exists" in again.stderr
    lost = dots(*words[:-1], tmp_path / "no" / "a.txt")
    assert lost.exit_status == 1
    assert lost.stdout == "no code\n"


def test_all_at_once(tiny_gguf: Path) -> None:
    done = dots("prompt", "-m", tiny_gguf, "hello", "--grammar", PLAIN, "--no-stream")
    assert done.stdout == "no code\n"
