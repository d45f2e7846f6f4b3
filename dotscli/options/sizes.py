"""Sizes as they are typed: `48G`, `512 MiB`, `1.5g`; the prefixes are powers of 1024.

A bare number is taken for bytes only where it could be meant so: `--vram 24` is 24 GiB in whoever
typed it. It knows no option.
"""

from __future__ import annotations

import re

import typer

SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([KMGT]?)(i?B)?", re.IGNORECASE)
LEAST_BARE = 1_000_000  # fewer bytes than this are written with their unit


class NoSizeError(typer.BadParameter):
    """A text that is no size, or not certainly one; `suggestion` is what to type instead."""

    def __init__(self, message: str, suggestion: str) -> None:
        super().__init__(message)
        self.suggestion = suggestion


def parse_size(text: str) -> int:
    """Bytes from the value of an option.

    Raises:
        NoSizeError: it is no such size, or a bare number that hardly means bytes.
    """
    nbytes = size_of(str(text))
    if nbytes is None:
        raise NoSizeError(f"{str(text)[:40]!r} is not a size such as 512M, 24G or 48GiB", "24G")
    if suggestion := bare(str(text)):
        raise NoSizeError(f"{text} has no unit, so it means {text} bytes", suggestion)
    return nbytes


def size_of(text: str) -> int | None:
    """Bytes from a text, and None for what is no size."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        return None
    power = ("", "K", "M", "G", "T").index(match[2].upper())
    nbytes = float(match[1]) * 1024**power
    return int(nbytes) if nbytes < 2**63 else None


def bare(text: str) -> str:
    """What a small number without a unit was probably meant to be: `24G` for `24`; else empty."""
    match = SIZE.fullmatch(text.strip())
    if match is None or match[2] or match[3]:
        return ""
    value = float(match[1])
    if not 0 < value < LEAST_BARE:
        return ""
    return f"{match[1]}G" if value < 1024 else f"{match[1]}M"
