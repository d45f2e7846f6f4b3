"""The tokenizer of a checkpoint as a GGUF stores it, and which token ends a reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dotscli.errors import DotsError
from dotscli.models import vocab as vocab_module
from dotscli.models.dots1 import Dots1
from dotscli.models.vocab import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocab
from tests import tiny

Tokenizer = dict[str, Any]
REPLY_END, TEXT_END = 282, 276


def load(
    folder: Path,
    change: Callable[[Tokenizer], object] = lambda tokenizer: None,
    config: dict[str, object] | None = None,
    tokenizer_config: dict[str, object] | None = None,
) -> Vocab:
    tokenizer: Tokenizer = tiny.tokenizer_json()
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return Vocab.load(folder, Dots1.from_config(tiny.config() | (config or {}), "config.json"))


def test_tokens_types_and_merges(tmp_path: Path) -> None:
    vocab = load(tmp_path)
    assert vocab.pre == "qwen2"
    assert len(vocab.tokens) == len(vocab.token_types) == 320
    assert vocab.tokens[:256] == tuple(tiny.byte_letters())
    assert vocab.tokens[256:259] == ("he", "ll", "hell")
    assert vocab.merges == tiny.MERGES
    assert vocab.tokens[TEXT_END:285] == tiny.SPECIAL_TOKENS
    assert set(vocab.token_types[:TEXT_END]) == {NORMAL}
    assert set(vocab.token_types[TEXT_END:285]) == {CONTROL}
    assert vocab.tokens[285:287] == ("[PAD285]", "[PAD286]")
    assert set(vocab.token_types[285:]) == {UNUSED}


def test_merges_as_pairs_are_the_same(tmp_path: Path) -> None:
    def pairs(tokenizer: Tokenizer) -> None:
        tokenizer.update(tiny.tokenizer_json(merges_as_pairs=True))

    assert load(tmp_path, pairs) == load(tmp_path)


def test_the_reply_ends_at_its_own_token(tmp_path: Path) -> None:
    vocab = load(tmp_path, config={"eos_token_id": TEXT_END})
    assert (vocab.eos_id, vocab.eot_id) == (REPLY_END, REPLY_END)
    assert (vocab.bos_id, vocab.pad_id) == (TEXT_END, TEXT_END)


def test_another_eos_of_the_config_ends_generation_too(tmp_path: Path) -> None:
    vocab = load(tmp_path, config={"eos_token_id": [TEXT_END, 278]})
    assert (vocab.eos_id, vocab.eot_id) == (REPLY_END, 278)


def test_without_the_reply_token_the_config_decides(tmp_path: Path) -> None:
    def rename(tokenizer: Tokenizer) -> None:
        tokenizer["added_tokens"][6]["content"] = "<|done|>"

    assert load(tmp_path, rename, config={"eos_token_id": 278}).eos_id == 278
    named = {"eos_token": {"content": "<|done|>"}}
    vocab = load(tmp_path, rename, config={"eos_token_id": None}, tokenizer_config=named)
    assert vocab.eos_id == REPLY_END
    with pytest.raises(DotsError, match="nothing says which token ends a reply"):
        load(tmp_path, rename, config={"eos_token_id": None}, tokenizer_config={})


def test_tokenizer_json_wins_over_tokenizer_config(tmp_path: Path) -> None:
    texts = {
        str(REPLY_END): "<|response|>",
        str(TEXT_END): "<|endoftext|>",
        "9999999": "far",
        "x": "odd",
    }
    wrong = {"added_tokens_decoder": {i: {"content": text} for i, text in texts.items()}}
    vocab = load(tmp_path, tokenizer_config=wrong)
    assert vocab.tokens[REPLY_END] == "<|endofresponse|>"
    assert vocab.eos_id == REPLY_END
    assert len(vocab.warnings) == 3
    assert f"calls token {REPLY_END}" in vocab.warnings[0]


def test_added_tokens_by_their_look(tmp_path: Path) -> None:
    def add(tokenizer: Tokenizer) -> None:
        for i, text in ((300, "<|fim|>"), (301, "<tool>")):
            tokenizer["added_tokens"].append({"id": i, "content": text, "special": False})

    vocab = load(tmp_path, add)
    assert vocab.token_types[300:302] == (CONTROL, USER_DEFINED)


def test_tokens_added_around_a_text_are_warned_of(tmp_path: Path) -> None:
    vocab = load(tmp_path, _set("post_processor", value={"type": "TemplateProcessing"}))
    assert "TemplateProcessing" in vocab.warnings[0]


def test_padding_never_repeats_a_token(tmp_path: Path) -> None:
    def add(tokenizer: Tokenizer) -> None:
        tokenizer["added_tokens"].append({"id": 300, "content": "[PAD290]", "special": True})

    vocab = load(tmp_path, add)
    assert len(set(vocab.tokens)) == len(vocab.tokens)


def _set(*keys: str | int, value: object) -> Callable[[Tokenizer], None]:
    def change(tokenizer: Tokenizer) -> None:
        at: Any = tokenizer
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


SPLIT = ("pre_tokenizer", "pretokenizers", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("model", "type", value="Unigram"), 'type is "Unigram"'),
        (_set("model", "byte_fallback", value=True), "byte_fallback is true"),
        (_set("model", "ignore_merges", value=True), "ignore_merges is true"),
        (_set("model", "vocab", value=[]), r"vocab is \[\], expected an object"),
        (
            _set("model", "vocab", "zz", value=320),
            "has the id 320, but config.json says vocab_size",
        ),
        (_set("model", "vocab", "zz", value="7"), 'has the id "7"'),
        (_set("model", "vocab", "zz", value=-1), "has the id -1"),
        (_set("model", "vocab", "zz", value=7), "share the id 7"),
        (_set("model", "vocab", "", value=300), "a token's text is"),
        (_set("model", "vocab", "\0", value=300), "NUL character"),
        (_set("model", "vocab", "\ud800", value=300), "not valid Unicode"),
        (lambda t: t["model"]["vocab"].pop("!"), "no token for the byte 0x21"),
        (_set("model", "merges", 3, value="a b c"), "merge 3 is"),
        (_set("model", "merges", 3, value=["a"]), "merge 3 is"),
        (_set("model", "merges", 3, value=["a b", "c"]), "merge 3 is"),
        (_set("model", "merges", 3, value=7), "merge 3 is 7"),
        (_set("model", "merges", 3, value="q q"), 'merge 3 needs the token "qq"'),
        (_set("model", "merges", value="a b"), "merges is .* expected a list"),
        (_set("added_tokens", 0, value=5), "added_tokens holds 5"),
        (_set("added_tokens", 0, "id", value=5), "contradicts"),
        (_set("added_tokens", 0, "id", value=320), "has the id 320"),
        (_set("added_tokens", 0, "content", value="!"), "contradicts"),
        (_set("added_tokens", 0, "content", value=None), "content is null"),
        (_set("normalizer", "type", value="NFKC"), 'type is "NFKC"'),
        (_set("pre_tokenizer", value=None), "pre_tokenizer is null"),
        (_set(*SPLIT, "pattern", "Regex", value=r"\w+"), r"pre-tokenizer is unknown: .*w\+"),
        (_set(*SPLIT, "pattern", value={"String": " "}), "pre-tokenizer is unknown"),
        (_set(*SPLIT, "behavior", value="Removed"), "pre-tokenizer is unknown"),
        (_set(*SPLIT, value=5), "pretokenizers holds 5"),
        (_set("pre_tokenizer", value={"type": "Whitespace"}), "is unknown: Whitespace"),
        (_set("pre_tokenizer", "pretokenizers", value=[]), "is unknown: empty"),
        (
            _set("pre_tokenizer", "pretokenizers", value=[{"type": "a"}] * 9999),
            "is unknown: a then a then a then a then ...$",
        ),
        (
            _set("pre_tokenizer", "pretokenizers", value=[{"type": ["a"] * 9999}]),
            r'is unknown: \["a", .{,80}\.\.\.$',
        ),
    ],
)
def test_malformed_tokenizer_is_refused(
    change: Callable[[Tokenizer], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DotsError, match=message) as caught:
        load(tmp_path, change)
    assert str(tmp_path / "tokenizer.json") in caught.value.message


def test_missing_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(DotsError, match=r"holds no tokenizer\.json"):
        Vocab.load(tmp_path, Dots1.from_config(tiny.config(), "config.json"))


def test_byte_letters_are_the_alphabet_of_the_fixture() -> None:
    assert vocab_module.byte_letters() == tiny.byte_letters()
