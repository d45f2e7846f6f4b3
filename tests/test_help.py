"""`--help`: every option once and under a heading, with its default; examples that work."""

from __future__ import annotations

import ast
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from dotscli.cli.app import app
from dotscli.cli.examples import EXAMPLES
from tests.transcript import command, dots, environment, on_a_terminal, plain

ROOT = Path(__file__).resolve().parents[1]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EVERY = pytest.mark.parametrize("name", COMMANDS)


def options(name: str) -> list[Any]:
    return [p for p in COMMANDS[name].params if p.param_type_name == "option"]


def help_of(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    for variable in ("DOTS_MODEL", "DOTS_THREADS", "DOTS_CTX_SIZE", "DOTS_HOT"):
        monkeypatch.delenv(variable, raising=False)
    done = dots(*name.split(), "--help")
    assert (done.exit_status, done.stderr) == (0, "")
    return done.stdout


def test_each_option_is_declared_once() -> None:
    declared: list[str] = []
    for path in sorted((ROOT / "dotscli").glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option":
                first = node.args[0]
                assert isinstance(first, ast.Constant)
                declared.append(first.value)
    assert len(declared) > 60
    assert sorted(declared) == sorted(set(declared))


def test_an_option_of_several_commands_is_spelled_and_read_alike() -> None:
    found: dict[str, dict[str, tuple[object, ...]]] = {}
    for name in COMMANDS:
        for option in options(name):
            looks = (option.opts, option.secondary_opts, option.multiple, option.is_flag)
            found.setdefault(option.opts[0], {})[name] = (*looks, option.type_descriptor.annotation)
    shared = {option: looks for option, looks in found.items() if len(looks) > 1}
    assert {"--threads", "--ctx-size", "--force", "--heat", "--cache-type-k"} <= set(shared)
    for option, looks in shared.items():
        assert len({str(look) for look in looks.values()}) == 1, option


@EVERY
def test_every_option_stands_under_a_heading_and_says_something(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(name, 200, monkeypatch)
    headings = re.findall(r"^(\S.*):$", text, re.M)
    assert headings[-2:] == ["Options", "Examples"]
    sections = dict(re.findall(r"^(\S.*):\n((?:  .*\n)+)", text, re.M))
    assert [h for h in sections if h not in ("Arguments", "Options", "Examples")]
    assert re.findall(r"^  (-\S+)", sections["Options"], re.M) == ["-h,"]
    for option in options(name):
        assert option.help, option.opts
        assert option.rich_help_panel is not None, option.opts
        assert option.opts[0] in sections[option.rich_help_panel.value]
        if option.default not in (None, "", False):
            entry = text[text.index(option.opts[0]) :]
            assert re.search(r"default: \S+[;\]]", entry.split("\n  -")[0]), option.opts


@EVERY
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_is_as_wide_as_the_terminal(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(name, columns, monkeypatch).split("Examples:")[0]
    assert max(map(len, text.splitlines())) <= columns
    assert "\x1b" not in text


def test_a_wide_terminal_is_used() -> None:
    with on_a_terminal("prompt", "--help", columns=150) as screen:
        assert screen.wait() == 0
        assert 110 < max(map(len, plain(screen.seen).splitlines())) <= 150
        assert "\x1b[1mSampling:\x1b[0m" in screen.seen
    with on_a_terminal("prompt", "--help", NO_COLOR="1") as screen:
        assert screen.wait() == 0
        assert "\x1b" not in screen.seen


def test_all_commands_are_listed_with_their_whole_first_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = help_of("", 60, monkeypatch)
    for name, found in COMMANDS.items():
        sentence = found.help.split("\n\n")[0].split()
        assert re.search(rf"^  {name} +" + r"\s+".join(map(re.escape, sentence)), text, re.M)


def test_every_command_has_two_examples() -> None:
    assert set(EXAMPLES) == set(COMMANDS)
    for name, examples in EXAMPLES.items():
        assert len(examples) == 2
        assert all(shlex.split(example)[:2] == ["dots", name] for example in examples)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder with what the examples name, but for what an earlier example makes."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "dots.llm1.inst").symlink_to(tiny_checkpoint)
    (folder / "text.txt").write_text("hello and the world, hello and the world. " * 60)
    return folder


@pytest.mark.parametrize("example", [e for each in EXAMPLES.values() for e in each])
def test_examples_work_when_typed(example: str, workplace: Path) -> None:
    """In the order of `dots --help`, in one folder."""
    homes = {
        f"XDG_{kind}_HOME": str(workplace / kind) for kind in ("CACHE", "CONFIG", "DATA", "STATE")
    }
    words = shlex.split(example)[1:]
    process = subprocess.Popen(
        command(*words), cwd=workplace, env=environment(**homes), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if words[0] != "worker":
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "error:" not in err
        assert words[0] == "chat" or out
        return
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    while "listening" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
