"""Recognises the pre-tokenizer of a tokenizer.json by what it says, not by a vocabulary's hash.

llama.cpp has each pre-tokenizer built in under a name; a wrong name splits text differently and
the model sees tokens it was not trained on. So an unknown one is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from dotscli.errors import DotsError
from dotscli.models.json_file import Values, shown

# tokenizer.json of Qwen2 and of dots.llm1; llama.cpp's LLAMA_VOCAB_PRE_TYPE_QWEN2.
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES = {QWEN2_REGEX: "qwen2"}


def pretokenizer_name(tokenizer: Values) -> str:
    """llama.cpp's name for the pre-tokenizer.

    Args:
        tokenizer: the whole tokenizer.json.

    Raises:
        DotsError: another normalizer than none or NFC, or a pre-tokenizer that llama.cpp would not
            reproduce; its regular expression is shown.
    """
    if tokenizer.has("normalizer"):
        normalizer = tokenizer.section("normalizer")
        if normalizer.values.get("type") != "NFC":
            raise normalizer.wrong("type", '"NFC" or no normalizer')
    pre = tokenizer.section("pre_tokenizer")
    steps = _steps(pre)
    kinds = [step.values.get("type") for step in steps]
    if kinds == ["Split", "ByteLevel"]:
        split, byte_level = steps
        pattern = split.section("pattern").values
        regex = pattern.get("Regex")
        plain = (
            split.values.get("behavior") == "Isolated"
            and not split.values.get("invert")
            and byte_level.values.get("use_regex") is False
            and not byte_level.values.get("add_prefix_space")
        )
        if plain and isinstance(regex, str) and regex in _NAMES:
            return _NAMES[regex]
        raise _unknown(tokenizer, shown(regex if regex is not None else pattern))
    raise _unknown(tokenizer, _in_turn(kinds) or "empty")


def _steps(pre: Values) -> list[Values]:
    if pre.text("type") != "Sequence":
        return [pre]
    steps = []
    for entry in pre.array("pretokenizers"):
        if not isinstance(entry, dict):
            raise DotsError(f"{pre.origin}: pretokenizers holds {shown(entry)}, not an object")
        steps.append(Values(entry, f"{pre.origin}, pretokenizers"))
    return steps


def _in_turn(kinds: Sequence[object]) -> str:
    known = [kind if isinstance(kind, str) and len(kind) < 40 else shown(kind) for kind in kinds]
    return " then ".join([*known[:4], "..."] if len(known) > 5 else known)


def _unknown(tokenizer: Values, what: str) -> DotsError:
    return DotsError(
        f"{tokenizer.origin}: the pre-tokenizer is unknown: {what}",
        hint="dots.llm1 splits text as Qwen2 does; compare tokenizer.json with the published one",
    )
