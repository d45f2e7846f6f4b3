"""Prompt templates and where things lie: dots templates, --template, dots paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from dotscli.conversation.prompt_template import PromptTemplate, read_template
from dotscli.errors import DotsError
from tests.transcript import dots

YES = ("--grammar", 'root ::= "yes"')


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    return {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CONFIG", "STATE", "DATA")}


@pytest.fixture
def folder(here: dict[str, str]) -> Path:
    found = Path(here["XDG_CONFIG_HOME"]) / "dots/templates"
    found.mkdir(parents=True)
    return found


def test_samples_are_written_once_and_nothing_is_replaced(here: dict[str, str]) -> None:
    assert "dots templates --init" in dots("templates", environ=here).stderr
    assert dots("templates", "--init", environ=here).stdout.count(".toml\n") == 3
    folder = Path(here["XDG_CONFIG_HOME"]) / "dots/templates"
    (folder / "review.toml").write_text('prompt = "mine"\n')
    assert "nothing written" in dots("templates", "--init", environ=here).stderr
    assert dots("templates", "review", environ=here).stdout == 'prompt = "mine"\n'
    listed = dots("templates", "--json", environ=here).json
    assert [row["name"] for row in listed] == ["commit", "review", "summary"]
    assert "commit" in dots("templates", environ=here).stdout
    assert all(read_template(folder, name).takes_input for name in ("commit", "summary"))


def test_a_question_goes_where_the_template_wants_it() -> None:
    assert PromptTemplate("a $input b $input").filled("$input x") == "a $input x b $input x"
    assert PromptTemplate("a $$ ${x}\n").filled("q") == "a $$ ${x}\n\nq"
    assert PromptTemplate("a").filled("") == "a"


def test_a_prompt_is_asked_with_a_template(
    folder: Path, here: dict[str, str], tiny_gguf: Path
) -> None:
    (folder / "t.toml").write_text('prompt = "hello $input and"\nsystem = "the world"\n')
    words = ("prompt", "-m", tiny_gguf, "--json", *YES)
    with_it = dots(*words, "--template", "t", "world", environ=here, stdin=None).json
    by_hand = dots(*words, "-s", "the world", "hello world and", stdin=None).json
    assert with_it["usage"] == by_hand["usage"]
    own = dots(*words, "--template", "t", "-s", "", "world", environ=here, stdin=None).json
    assert own["text"] == "yes"
    no_question = dots(*words, "--template", "t", environ=here, stdin=None)
    assert no_question.exit_status == 2
    (folder / "t.toml").write_text('prompt = "hello"\n')
    assert dots(*words, "--template", "t", environ=here, stdin=None).json["text"] == "yes"


def test_a_template_constrains_the_answer_unless_flags_do(
    folder: Path, here: dict[str, str], tiny_gguf: Path
) -> None:
    (folder / "t.toml").write_text('prompt = "$input"\njson_schema = "yes bool"\n')
    words = ("prompt", "-m", tiny_gguf, "--template", "t", "hello", "--temp", "0", "-n", "60")
    assert dots(*words, environ=here, stdin=None).stdout.lstrip().startswith("{")
    assert dots(*words, *YES, environ=here, stdin=None).stdout == "yes\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('system = "x"\n', "has no prompt"),
        ('prompt = "  "\n', "has no prompt"),
        ("prompt = 1\n", "prompt has a wrong value"),
        ('prompt = "x"\nextract = "yes"\n', "extract has a wrong value"),
        ('prompt = "x"\nrun = "rm"\n', "run is unknown"),
        ("prompt = \n", "t.toml: "),
        ("a." * 1000 + "b = 1\n", "parts"),
        ("#" * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_wrong_template_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(DotsError, match=message):
        read_template(tmp_path, "t")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc/passwd", "x" * 65, "a b"])
def test_a_name_is_that_of_a_file_in_the_folder(name: str, here: dict[str, str]) -> None:
    said = dots("prompt", "--template", name, "x", environ=here, stdin=None)
    assert said.exit_status == 1
    assert "can't be the name of a template" in said.stderr
    assert "there is no template" in dots("templates", "none", environ=here).stderr


def test_a_template_that_is_no_file_is_refused_at_once(folder: Path, here: dict[str, str]) -> None:
    import os

    os.mkfifo(folder / "pipe.toml")
    assert dots("templates", "pipe", environ=here).exit_status == 1


def test_paths_are_those_that_are_used(here: dict[str, str], tmp_path: Path) -> None:
    found = dots("paths", "--json", environ=here).json
    assert found["config"] == str(tmp_path / "CONFIG/dots/config.toml")
    assert found["sessions"] == str(tmp_path / "STATE/dots/sessions")
    assert found["models"] == str(tmp_path / "DATA/dots/models")
    shown = dots("paths", environ=here).stdout
    assert all(path in shown for path in found.values())
    assert "not there" in shown
