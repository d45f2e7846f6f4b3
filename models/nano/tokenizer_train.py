"""Train the nano model's tokenizer: byte-level BPE with Qwen2's rules, the dots special tokens.

    python -m dotscli.models.nano.tokenizer_train

Writes tokenizer.json and tokenizer_config.json beside this file. Every byte is in the vocabulary,
every digit is a token of its own (that is Qwen2's pre-tokenizer). Development only: needs the
tokenizers library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from dotscli.models.nano.text import talks

FOLDER = Path(__file__).parent
N_BASE = 2800
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|userprompt|>",
    "<|endofuserprompt|>",
    "<|response|>",
    "<|endofresponse|>",
    "<|system|>",
    "<|endofsystem|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>{{ message['content'] }}<|endofsystem|>"
    "{% elif message['role'] == 'user' %}<|userprompt|>{{ message['content'] }}<|endofuserprompt|>"
    "{% elif message['role'] == 'assistant' %}<|response|>{{ message['content'] }}<|endofresponse|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|response|>{% endif %}"
)


def texts() -> Iterator[str]:
    """The text of 40,000 conversations, without the special tokens."""
    for talk in talks(seed=0, count=40_000):
        yield talk.system
        for question, answer in talk.turns:
            yield question
            yield answer


def train(texts: Iterable[str], n_base: int = N_BASE) -> Tokenizer:
    """The tokenizer; tokens of at most 12 bytes, so that Chinese phrases do not become one.

    ``n_base`` tokens are learnt from the texts; the special ones follow them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(
        add_prefix_space=False, use_regex=False, trim_offsets=False
    )
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, use_regex=False, trim_offsets=False
    )
    trainer = trainers.BpeTrainer(
        vocab_size=n_base,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != n_base:
        raise SystemExit(f"the text gave {tokenizer.get_vocab_size()} tokens, not {n_base}")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def main() -> None:
    """Train and write both files."""
    tokenizer = train(texts())
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    decoder = {
        str(tokenizer.token_to_id(t)): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for t in SPECIAL
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endofresponse|>",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (FOLDER / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
