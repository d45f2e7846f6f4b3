"""Finds the chat template of a checkpoint; where there is none, the built-in one of dots.llm1.

The text is carried over as it is. It does not render: that is `dotscli.models.template`.
"""

from __future__ import annotations

from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.json_file import read_object, shown
from dotscli.models.template import DOTS1_TEMPLATE

MAX_NBYTES = 1 << 20


def chat_template(folder: Path) -> str:
    """chat_template.jinja, then chat_template of tokenizer_config.json, then the built-in one.

    A list of named templates, as transformers writes them, gives the one named "default".

    Raises:
        DotsError: a template that is no text, or larger than 1 MiB.
    """
    path = folder / "chat_template.jinja"
    config_path = folder / "tokenizer_config.json"
    if path.exists():
        text: object = _read_text(path)
    else:
        path = config_path
        text = read_object(path).get("chat_template") if path.exists() else None
    if isinstance(text, list):
        named = {t.get("name"): t.get("template") for t in text if isinstance(t, dict)}
        text = named.get("default")
        if text is None:
            names = ", ".join(sorted(str(name) for name in named)) or "none"
            raise DotsError(
                f"{path}: chat_template has no template named default, only: {names}",
                hint="put the one to use into chat_template.jinja",
            )
    if text is None:
        return DOTS1_TEMPLATE
    if not isinstance(text, str):
        raise DotsError(f"{path}: chat_template is {shown(text)}, expected a string")
    if len(text) > MAX_NBYTES or "\0" in text:
        raise DotsError(
            f"{path}: the chat template is longer than {MAX_NBYTES} or contains NUL bytes"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DotsError(f"{path}: the chat template is not valid Unicode") from None
    return text


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_NBYTES + 1).decode("utf-8")
    except OSError as error:
        raise DotsError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DotsError(f"{path} is not UTF-8 text") from None
