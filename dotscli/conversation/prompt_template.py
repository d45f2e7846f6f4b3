"""Prompt templates: what is asked again and again, in a file of the user's own.

`NAME.toml` with `prompt`, in which `$input` stands for the question and is added at the end where
it is missing, and perhaps `system`, `json_schema` and `extract`. Nothing in it is executed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotscli.errors import DotsError
from dotscli.models.toml_file import read_toml
from dotscli.options.values import templates_in

INPUT = "$input"
NAME = re.compile(r"[\w-]{1,64}")
MAX_LISTED = 1000
SAMPLES = {
    "review": """\
system = "You are an experienced programmer who reviews code."
prompt = '''
Find the defects of this code, the worst first. For each: the line, what goes wrong, the change.

$input
'''
""",
    "summary": """\
prompt = '''
Summarise the following text in at most five sentences.

$input
'''
""",
    "commit": """\
prompt = '''
Write a commit message for this change: one line of at most 72 characters in the imperative.

$input
'''
""",
}


@dataclass(frozen=True)
class PromptTemplate:
    """What a file says; `json_schema` as after --json-schema, `extract` as -x."""

    prompt: str
    system: str = ""
    json_schema: str = ""
    extract: bool = False

    @property
    def takes_input(self) -> bool:
        """Whether it has a place for a question."""
        return INPUT in self.prompt

    def filled(self, question: str) -> str:
        """The prompt with a question in it."""
        if self.takes_input:
            return self.prompt.replace(INPUT, question)
        return f"{self.prompt.rstrip()}\n\n{question}" if question else self.prompt


def read_template(folder: Path, name: str) -> PromptTemplate:
    """The template of this name.

    Raises:
        DotsError: there is none, or its file says something else than a template may.
    """
    path = template_path(folder, name)
    values = read_toml(path, "dots templates --init writes samples")
    if values is None:
        known = ", ".join(names(folder))
        raise DotsError(
            f"there is no template {name}",
            hint=f"there are: {known}" if known else "dots templates --init writes samples",
        )
    kinds: dict[str, type] = {"prompt": str, "system": str, "json_schema": str, "extract": bool}
    for key, value in values.items():
        kind: Any = kinds.get(key)
        if kind is None:
            raise DotsError(
                f"{path}: {key[:40]} is unknown", hint=f"valid here: {', '.join(kinds)}"
            )
        if not isinstance(value, kind):
            what = "true or false" if kind is bool else "a text in quotes"
            raise DotsError(f"{path}: {key} has a wrong value", hint=f"give {what}")
    if not values.get("prompt", "").strip():
        raise DotsError(f"{path} has no prompt", hint='give it a line: prompt = "..."')
    return PromptTemplate(**values)


def template_path(folder: Path, name: str) -> Path:
    """Where a template lies.

    Raises:
        DotsError: the name can't be one.
    """
    if not NAME.fullmatch(name):
        raise DotsError(
            f"{name[:40]!r} can't be the name of a template",
            hint=f"it is that of a file in {folder}, without .toml",
        )
    return folder / f"{name}.toml"


def names(folder: Path) -> list[str]:
    """The templates in a folder, in order."""
    return [name for name in templates_in(folder) if NAME.fullmatch(name)][:MAX_LISTED]


def write_samples(folder: Path) -> list[Path]:
    """Write the samples that aren't there yet; their paths.

    Raises:
        DotsError: the folder can't be written.
    """
    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in SAMPLES.items():
            path = folder / f"{name}.toml"
            if not path.exists():
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
                made.append(path)
    except OSError as error:
        raise DotsError(f"{folder} can't be written: {error.strerror}") from error
    return made
