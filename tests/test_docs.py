"""The documentation can't drift: generated parts are current, examples do what they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from dotscli.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples() -> Iterator[tuple[str, str, str]]:
    """(document, command, expected stdout) of every ```console block, a `$` line each."""
    for document in DOCUMENTS:
        for block in re.findall(r"```console\n(.*?)```", document.read_text("utf-8"), re.DOTALL):
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
                yield document.name, command, expected


EXAMPLES = list(examples())
# Seconds and tokens per second in JSON, and what was guessed because it seemed to be fast.
SPEED = re.compile(r'("(?:\w+_(?:s|tps)|drafted_tokens|accepted_tokens)": )[\d.]+')


def test_generated_parts_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_has_examples() -> None:
    shown = [expected for name, _, expected in EXAMPLES if name == "README.md"]
    assert len(shown) >= 5
    assert all(expected.strip() and expected.strip() != "*" for expected in shown)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder that sees the nano checkpoint under the path that the documents use."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "models").symlink_to(ROOT / "models")
    return folder


@pytest.mark.parametrize(("document", "command", "expected"), EXAMPLES, ids=lambda v: v[:40])
def test_examples_do_what_they_show(
    document: str, command: str, expected: str, workplace: Path
) -> None:
    """In order, in one folder, to the letter; only what a machine's speed decides may differ."""
    homes = {f"XDG_{kind}_HOME": str(workplace / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=workplace, env=os.environ | homes | {"PATH": path},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SPEED.sub(r"\1*", done.stdout).rstrip("\n") == SPEED.sub(r"\1*", expected).rstrip("\n")


def test_the_chinese_readme_has_the_structure_of_the_english_one() -> None:
    english, chinese = (
        (ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")
    )
    for what in (r"^(#+) ", r"(```.*?```)", r"(<!-- generated.*?<!-- end -->)", r"^(- )"):
        pattern = re.compile(what, re.M | re.S)
        assert pattern.findall(chinese) == pattern.findall(english), what
    sections = [re.split(r"^## .*$", text, flags=re.M) for text in (english, chinese)]
    for ours, theirs in zip(*sections, strict=True):
        for what in (r"\]\((?!README)([^)]+)\)", r"`([^`\n]+)`"):
            assert sorted(re.findall(what, theirs)) == sorted(re.findall(what, ours)), ours[:200]
        prose = [re.sub(r"```.*?```", "", text, flags=re.S) for text in (ours, theirs)]
        numbers = [sorted(re.findall(r"\d[\d,.]*\d|\d", text)) for text in prose]
        assert len(set(numbers[0]) - set(numbers[1])) <= len(set(numbers[0])) // 10, ours[:200]


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    names = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(names) >= 10
    for name in names:
        assert f"`dots {name}" in readme


def test_documents_name_only_files_that_exist() -> None:
    for document in (*DOCUMENTS, ROOT / "README.zh-CN.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_wish_has_a_line_and_its_tests_exist() -> None:
    text = (ROOT / "docs/wishes.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| .* \| (Done|Not yet).* \| ?(.*?) ?\|$", text, re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, 21))
    for number, state, tests in rows:
        named = re.findall(r"`(tests/\w+\.py)`", tests)
        assert bool(named) == (state == "Done"), number
        assert all((ROOT / name).is_file() for name in named)


def test_the_manual_has_every_command() -> None:
    manual = (ROOT / "dotscli/man/dots.1").read_text("utf-8")
    names = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name in names:
        assert f"\n.SH DOTS {name.upper()}\n" in manual
    assert not re.search(r"^['.](?!TH|SH|nf|fi)", manual, re.M)  # no line is taken for a request
