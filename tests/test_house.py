"""The house: who may import whom, one door for each library, and what gets installed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOORS = {
    "llama_cpp": ("dotscli/engine/",),
    "gguf": ("quantize/",),
    "typer": ("dotscli/cli/", "dotscli/options/"),
    "rich": ("dotscli/terminal/rich_text.py", "dotscli/terminal/markdown.py"),
    "markdown_it": ("dotscli/terminal/markdown.py",),
    "wcwidth": ("dotscli/terminal/text.py",),
    "jinja2": ("models/sandbox.py",),
    "prompt_toolkit": ("dotscli/conversation/editor.py", "dotscli/conversation/keys.py"),
    "matplotlib": ("dotscli/views/expert_plot.py",),
}
FORBIDDEN = ("click", "pickle", "marshal", "shelve", "torch", "transformers")


def sources() -> list[Path]:
    """Every module that gets installed, under its real path (not through the two links)."""
    files = [*(ROOT / "dotscli").rglob("*.py"), *(ROOT / "quantize").rglob("*.py")]
    files += [p for p in (ROOT / "models").rglob("*.py") if "nano" not in p.parts]
    kept = [p for p in files if p.relative_to(ROOT).parts[1] not in ("quantize", "models")]
    return sorted(kept)


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        # import_module of the standard library, submodule of engine/lib.py
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("module"):
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_library_has_one_door(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        top = module.split(".")[0]
        assert top not in FORBIDDEN, f"{name} imports {module}"
        if top in DOORS:
            assert name.startswith(DOORS[top]), f"{name} imports {module}"


@pytest.mark.parametrize("library", DOORS)
def test_behind_each_door_somebody_stands(library: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        for module in imported(ast.parse(path.read_text(encoding="utf-8")))
        if module.split(".")[0] == library
    }
    for door in DOORS[library]:
        assert any(user.startswith(door) for user in users), f"nobody in {door} imports {library}"


def test_each_dependency_has_a_door_or_is_used_all_over() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.M | re.S)
    assert listed is not None
    names = {name.lower().replace("-", "_") for name in re.findall(r'"([\w-]+)', listed[1])}
    everywhere = {"numpy", "psutil", "platformdirs", "tomli"}
    sold_as = {"llama_cpp": "llama_cpp_python", "markdown_it": "markdown_it_py"}
    ours = {sold_as.get(name, name) for name in DOORS} - {"matplotlib"}
    assert names == ours | everywhere


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


def test_only_the_terminal_touches_the_standard_streams() -> None:
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        streams = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "sys"
        } & {"stdin", "stdout", "stderr"}
        prints = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("print", "input", "eval", "exec")
        ]
        assert not prints, f"{path.name} calls print, input, eval or exec"
        assert not streams or path.name == "terminal.py", f"{path.name} uses sys.{streams}"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_layers_go_one_way() -> None:
    done = run(str(Path(sys.executable).with_name("lint-imports")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_and_mypy_are_content() -> None:
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        done = run(sys.executable, "-m", *command)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_wheel_holds_dotscli_and_nothing_else(tmp_path: Path) -> None:
    command = ["pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    done = run(sys.executable, "-m", *command, DOTSCLI_PURE="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dotscli"}
    for needed in ("cli/app.py", "quantize/plan.py", "models/dots1.py", "models/nano/config.json"):
        assert f"dotscli/{needed}" in names
    assert not [name for name in names if name.startswith("dotscli/models/nano/") and ".py" in name]
    assert not [name for name in names if name.startswith("dotscli/native/")]
