"""README.md's front matter and what a model's name says: licence, parents, tags, languages.

The front matter is YAML of the plainest kind: keys with a word, or with a list of words. Exactly
that is read, nothing nested, no references, no types; a line that is anything else is skipped,
because a model card's decoration must not stop a conversion.
"""

from __future__ import annotations

import re
from pathlib import Path

from dotscli.errors import DotsError

MAX_NBYTES = 1 << 20
_MAX_TEXT = 1024  # characters of one value

_PAIR = re.compile(r"([A-Za-z_][\w-]*):\s*(.*)$")
_ITEM = re.compile(r"\s*-\s+(.*)$")


def front_matter(path: Path) -> dict[str, tuple[str, ...]]:
    """Key -> its words, of the block between two lines "---" at the top; empty without one.

    Raises:
        DotsError: the file is there and can't be read.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(MAX_NBYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise DotsError(f"{path} can't be read: {error.strerror}") from None
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines[1:]:
        if line.rstrip() == "---":
            break
        pair, item = _PAIR.match(line), _ITEM.match(line)
        if pair:
            current = found.setdefault(pair[1], [])
            current += _words(pair[2])
        elif item:
            current += _words(item[1])
        elif line.strip():
            current = []
    return {key: tuple(words) for key, words in found.items() if words}


def _words(text: str) -> list[str]:
    """One value, or the values of an inline list [a, b]."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [word for part in text[1:-1].split(",") for word in _words(part)]
    if text.startswith(("{", "&", "*", "|", ">", "!")):
        return []
    if text[:1] in ("'", '"') and text.endswith(text[0]) and len(text) >= 2:
        text = text[1:-1]
    else:
        text = text.split(" #")[0].rstrip()
    return [text[:_MAX_TEXT]] if text and "\0" not in text else []


def title(name: str) -> str:
    """A folder's or repository's name as a title: words capitalised, versions left alone."""
    words = name.strip().replace("-", " ").split()
    version = re.compile(r"v\d+(\.\d+)*|\d.*")
    return " ".join(w.title() if w.islower() and not version.fullmatch(w) else w for w in words)


def base_model(parent: str) -> dict[str, str]:
    """name, organization and repo_url of a parent named "owner/name" or by its address."""
    found = re.fullmatch(r"(?:https?://huggingface\.co/)?([\w.-]+)/([\w.-]+)", parent)
    if not found:
        return {"repo_url": parent} if "://" in parent else {"name": title(parent)}
    owner, name = found[1], found[2]
    return {
        "name": title(name),
        "organization": title(owner),
        "repo_url": f"https://huggingface.co/{owner}/{name}",
    }
