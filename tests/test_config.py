"""config.toml: what holds and where it comes from, an example, and what a broken one stops."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from dotscli.errors import DotsError
from dotscli.models.toml_file import MAX_NBYTES
from dotscli.options.config_file import read_config
from tests.transcript import dots, dots_process


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def write(home: dict[str, str], text: str) -> Path:
    path = Path(home["XDG_CONFIG_HOME"]) / "dots" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def values(facts: dict[str, list[dict[str, object]]], option: str) -> dict[object, object]:
    return {
        s["command"]: (s["value"], s["origin"]) for s in facts["settings"] if s["option"] == option
    }


def test_each_value_has_its_origin(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOTS_THREADS")
    path = write(home, "temp = 0.5\nctx-size = 512\nquiet = true\n[chat]\nctx-size = 1024\n")
    monkeypatch.setenv("DOTS_HOT", "off")
    facts = dots("config", "--json", environ=home).json
    assert (facts["path"], facts["exists"], facts["problem"]) == (str(path), True, None)
    assert values(facts, "temp") == {
        "prompt": (0.5, "config.toml"), "chat": (0.5, "config.toml"),
    }  # fmt: skip
    sizes = values(facts, "ctx-size")
    assert sizes["prompt"] == (512, "config.toml")
    assert sizes["chat"] == (1024, "config.toml [chat]")
    assert sizes["calibrate"] == (512, "built-in")  # tokens of a chunk: not what was meant
    assert values(facts, "hot")["prompt"] == ("off", "DOTS_HOT")
    assert values(facts, "threads")["worker"] == (0, "built-in")
    text = dots("config", environ=home).stdout
    assert re.search(r"^ctx-size +1024 +config\.toml \[chat\] +chat$", text, re.M)
    assert re.search(r"^hot +off +DOTS_HOT +prompt, chat$", text, re.M)
    assert re.search(r"^top-k +the model's, else 40 +built-in", text, re.M)


def test_the_environment_wins_over_the_file(
    home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, "ctx-size = 512\n")
    monkeypatch.setenv("DOTS_CTX_SIZE", "768")
    facts = dots("config", "--json", environ=home).json
    assert values(facts, "ctx-size")["prompt"] == ("768", "DOTS_CTX_SIZE")


def test_the_example_is_written_once_and_changes_nothing(home: dict[str, str]) -> None:
    before = dots("config", "--json", environ=home).json
    assert before["exists"] is False
    done = dots("config", "--init", environ=home)
    path = Path(before["path"])
    assert (done.exit_status, done.stdout) == (0, f"{path}\n")
    assert dots("config", "--json", environ=home).json["settings"] == before["settings"]
    path.write_text("temp = 0.5\n")
    again = dots("config", "--init", environ=home)
    assert again.exit_status == 1
    assert f"{path} already exists" in again.stderr
    assert path.read_text() == "temp = 0.5\n"


def test_every_line_of_the_example_can_be_put_into_force(home: dict[str, str]) -> None:
    dots("config", "--init", environ=home)
    path = Path(dots("config", "--path", environ=home).stdout.strip())
    text = path.read_text()
    in_force = re.sub(r"^# (\[\w+\]|[a-z-]+ = .*)$", r"\1", text, flags=re.M)
    path.write_text(in_force)
    assert in_force.count(" = ") > 40
    facts = dots("config", "--json", environ=home).json
    assert "is unknown" not in (facts["problem"] or "")
    known = {s["option"]: s["value"] for s in facts["settings"]}
    assert {"temp", "hot", "vram", "bpw", "port"} <= set(known)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temp = 'warm'", "temp: "),
        ("[prompt]\ntemp = [1]", "temp in [prompt] is not a single value"),
        ("stop = 'END'", "stop is not a list"),
        ("nonsense = 1", "nonsense is unknown"),
        ("temp = ", "Invalid value"),
        ("vram = 24", "has no unit"),
    ],
)
def test_a_broken_config_stops_what_needs_it_and_nothing_that_mends_it(
    text: str, message: str, home: dict[str, str]
) -> None:
    path = write(home, text)
    stopped = dots("prompt", "hi", environ=home)
    assert (stopped.exit_status, stopped.stdout) == (1, "")
    assert stopped.stderr.startswith(f"error: {path}: ")
    assert message in stopped.stderr
    for words in (("doctor",), ("config",)):
        done = dots(*words, environ=home)
        assert done.exit_status == 1
        assert done.stdout.count("\n") > 10
        assert message in done.stderr
    assert message in dots("config", "--json", environ=home).json["problem"]
    assert any(message in p for p in dots("doctor", "--json", environ=home).json["problems"])
    for words in (("--help",), ("prompt", "--help"), ("--version",), ("config", "--path")):
        assert dots(*words, environ=home).exit_status == 0


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * 30_000) + " = 1",
        "[" + ".".join("a" * 30_000) + "]",
        "x = {" + " . ".join("a" * 20_000) + " = 1}",
        "x = " + "[" * 60_000,
        "x = " + "{a = " * 10_000,
        "'''" * 20_000,
        '"' * 60_000,
        "a" * 60_000,
        "#" * MAX_NBYTES + "\n",
    ],
)
def test_a_config_takes_no_time(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(DotsError) as error:
        read_config(path, {"prompt": {"temp": "temp"}})
    assert time.process_time() - started < 1
    assert str(path) in error.value.message


def test_a_text_with_dots_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('system = "a.b.c.d.e.f.g [[[[[[[[[[" # a.b.c.d.e.f\nprompt.temp = 0.5\n')
    found = read_config(path, {"prompt": {"temp": "temp", "system": "system"}})
    assert found["prompt"]["temp"].value == 0.5


def test_a_model_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    done = dots("prompt", "hi", "-m", "big", environ={"DOTS_MODELS": str(tmp_path)})
    assert f"put one into {tmp_path} and use its name" in done.stderr
    for name in ("one.gguf", "two-00001-of-00002.gguf", "two-00002-of-00002.gguf", "notes.txt"):
        (tmp_path / name).touch()
    done = dots("prompt", "hi", "-m", "big", environ={"DOTS_MODELS": str(tmp_path)})
    assert done.exit_status == 1
    assert f"hint: {tmp_path} has: one, two-00001-of-00002\n" in done.stderr


def test_a_real_process_reads_it(home: dict[str, str]) -> None:
    write(home, "quiet = true\n")
    done = dots_process("config", "--json", **home)
    assert ("quiet", "config.toml") in {
        (s["option"], s["origin"]) for s in json.loads(done.stdout)["settings"]
    }
