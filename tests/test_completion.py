"""What Tab offers in bash, zsh and fish: as typer would, and at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from dotscli.cli.app import app
from dotscli.cli.completion import TREE, complete, offered, split_words
from tests.transcript import environment

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def bash(line: str) -> list[str]:
    words = split_words(line) + [""] * line.endswith(" ")
    asked = {
        "_DOTS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    found = complete(asked)
    assert found is not None
    assert found[1] == 0
    return found[0].splitlines()


def test_commands_options_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bash("dots ") == list(COMMANDS)
    assert bash("dots p") == ["prompt", "plan", "paths"]
    assert bash("dots --ver") == ["--version"]
    assert bash("dots chat --no-ma") == ["--no-markdown"]
    assert bash("dots quantize --type q4_k") == ["q4_k_s", "q4_k_m"]
    assert bash("dots sessions re") == ["rename"]
    assert bash("dots sessions rename ") == []
    assert bash("dots prompt --temp ") == []
    (tmp_path / "model.gguf").touch()
    (tmp_path / "other.txt").touch()
    (tmp_path / "dots/templates").mkdir(parents=True)
    (tmp_path / "dots/templates/mine.toml").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert bash("dots prompt --template m") == ["mine"]
    assert bash(f"dots chat -m {tmp_path}/") == [f"{tmp_path}/dots/", f"{tmp_path}/model.gguf"]
    assert bash(f"dots plan {tmp_path}/m") == [f"{tmp_path}/model.gguf"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_is_offered(name: str) -> None:
    top = typer.main.get_command(app).make_context("dots", [], resilient_parsing=True)
    context = COMMANDS[name].make_context(name, [], resilient_parsing=True, parent=top)
    wanted = {
        option
        for param in COMMANDS[name].get_params(context)
        for option in (*param.opts, *param.secondary_opts)
        if option.startswith("-")
    }
    assert {value for value, _ in offered([name], "-")} == wanted


def test_zsh_and_fish_get_what_it_is_as_well() -> None:
    zsh = complete({"_DOTS_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "dots cha"})
    assert zsh is not None
    assert zsh[0].startswith('_arguments \'*: :(("chat":"Chat with a model; from a pipe')
    nothing = {"_DOTS_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "dots chat -m /no/such/"}
    assert complete(nothing) == ("_files", 0)
    fish = {
        "_DOTS_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "dots cha",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    found = complete(fish)
    assert found is not None
    assert found[0].startswith("chat\tChat with a model")
    assert complete(fish | {"_TYPER_COMPLETE_FISH_ACTION": "is-args"}) == ("", 0)
    nobody = {"_TYPER_COMPLETE_FISH_ACTION": "is-args", "_TYPER_COMPLETE_ARGS": "dots zzz"}
    assert complete(fish | nobody) == ("", 1)
    assert complete({"_DOTS_COMPLETE": "source_bash"}) is None
    assert complete({"_DOTS_COMPLETE": "complete_powershell"}) is None


@given(st.text(max_size=40), st.text(max_size=3))
def test_whatever_has_been_typed_there_is_an_answer(line: str, position: str) -> None:
    for shell in ("bash", "zsh", "fish"):
        asked = {
            "_DOTS_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": position,
            "_TYPER_COMPLETE_ARGS": line,
        }  # fmt: skip
        assert complete(asked) is not None


def test_the_process_answers_without_typer() -> None:
    asked = {"_DOTS_COMPLETE": "complete_bash", "COMP_WORDS": "dots pro", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dotscli"], env=environment(**asked),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "prompt\n"
    assert "typer" not in done.stderr
    assert json.loads(TREE.read_text("utf-8"))["commands"].keys() == COMMANDS.keys()
