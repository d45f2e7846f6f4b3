"""tokenizer.json -> the vocabulary of a GGUF: tokens, types, merges, and the ids with a meaning.

dots.llm1 has the byte-level BPE of Qwen2 with its own special tokens. Ids come from tokenizer.json
alone, which is what the weights were trained with; tokenizer_config.json has been seen to name them
otherwise and is only compared. The pre-tokenizer is recognised by its regular expression, so a
vocabulary of any size passes. This module does not tokenize; llama.cpp does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.models.json_file import Values, read_object, shown
from dotscli.models.pretokenizer import pretokenizer_name

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type

REPLY_END = "<|endofresponse|>"
TEXT_END = "<|endoftext|>"


@dataclass(frozen=True)
class Vocab:
    """The vocabulary of one checkpoint.

    Attributes:
        tokens: text of every id; a hole in tokenizer.json is "[PAD7]" at id 7.
        token_types: NORMAL, CONTROL, USER_DEFINED or UNUSED of every id.
        merges: "left right", in order of rank.
        pre: llama.cpp's name of the pre-tokenizer.
        eos_id: ends a reply. eot_id: ends generation too; the same id if there is no other.
        bos_id: never added by itself, but llama.cpp takes id 11 where the key is absent.
        warnings: what was odd and how it was decided.
    """

    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    eos_id: int
    eot_id: int
    bos_id: int | None
    pad_id: int
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path, model: Dots1) -> Vocab:
        """Read folder/tokenizer.json and compare it with folder/tokenizer_config.json.

        Raises:
            DotsError: not a byte-level BPE tokenizer, ids that don't fit model.vocab_size, merges
                of unknown tokens, an unknown pre-tokenizer, or no token that ends a reply.
        """
        path = folder / "tokenizer.json"
        if folder.is_dir() and not path.exists():
            raise DotsError(
                f"{folder} holds no tokenizer.json",
                hint="the fast tokenizer's file is needed; vocab.json and merges.txt are not read",
            )
        values = Values(read_object(path), str(path))
        bpe = values.section("model")
        _check_bpe(bpe)
        texts = _token_texts(bpe, model.vocab_size)
        added = _added_tokens(values, texts, model.vocab_size)
        _check_bytes(texts, values.origin)
        merges = _merges(bpe, texts)
        tokens, types = _fill_holes(texts, added, model.vocab_size)
        ids = {text: i for i, text in enumerate(tokens)}
        config_path = folder / "tokenizer_config.json"
        config = read_object(config_path) if config_path.exists() else {}
        warnings = (
            *_disagreements(Values(config, str(config_path)), tokens),
            *_post_processing(values),
        )
        eos_id, eot_id = _ends(model, ids, config, folder)
        text_end = ids.get(TEXT_END)
        return cls(
            tokens=tokens,
            token_types=types,
            merges=merges,
            pre=pretokenizer_name(values),
            eos_id=eos_id,
            eot_id=eot_id,
            bos_id=model.bos_id if model.bos_id is not None else text_end,
            pad_id=next(i for i in (model.pad_id, text_end, eos_id) if i is not None),
            warnings=warnings,
        )


def _check_bpe(bpe: Values) -> None:
    if bpe.text("type") != "BPE":
        raise bpe.wrong("type", '"BPE"')
    for key in ("byte_fallback", "dropout", "unk_token", "continuing_subword_prefix",
                "end_of_word_suffix", "ignore_merges"):  # fmt: skip
        if bpe.values.get(key):  # null, false and "" all mean that the feature is off
            raise bpe.wrong(key, "nothing: llama.cpp's byte-level BPE does not have it")


def _check_id(i: object, text: object, vocab_size: int, origin: str) -> int:
    if isinstance(i, bool) or not isinstance(i, int) or i < 0:
        raise DotsError(f"{origin}: the token {shown(text)} has the id {shown(i)}")
    if i >= vocab_size:
        raise DotsError(
            f"{origin}: the token {shown(text)} has the id {i}, but config.json says "
            f"vocab_size {vocab_size}",
            hint="tokenizer.json and config.json belong to different models",
        )
    return i


def _check_text(text: object, origin: str) -> str:
    if not isinstance(text, str) or not text:
        raise DotsError(f"{origin}: a token's text is {shown(text)}, expected letters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DotsError(f"{origin}: the token {shown(text)} is not valid Unicode") from None
    if "\0" in text:
        raise DotsError(f"{origin}: the token {shown(text)} contains a NUL character")
    return text


def _token_texts(bpe: Values, vocab_size: int) -> dict[int, str]:
    """id -> text of the BPE vocabulary, every id once."""
    vocab = bpe.section("vocab").values
    texts: dict[int, str] = {}
    for text, given in vocab.items():
        i = _check_id(given, text, vocab_size, bpe.origin)
        if i in texts:
            raise DotsError(
                f"{bpe.origin}: the tokens {shown(texts[i])} and {shown(text)} share the id {i}"
            )
        texts[i] = _check_text(text, bpe.origin)
    return texts


def _added_tokens(values: Values, texts: dict[int, str], vocab_size: int) -> dict[int, bool]:
    """id -> whether special, of the added tokens; their texts go into `texts`."""
    added: dict[int, bool] = {}
    ids = {text: i for i, text in texts.items()}
    for entry in values.array("added_tokens") if values.has("added_tokens") else []:
        if not isinstance(entry, dict):
            raise DotsError(f"{values.origin}: added_tokens holds {shown(entry)}, not an object")
        token = Values(entry, f"{values.origin}, added_tokens")
        text = _check_text(token.text("content"), token.origin)
        i = _check_id(token.values.get("id"), text, vocab_size, token.origin)
        if texts.get(i, text) != text or ids.get(text, i) != i:
            other = texts.get(i, text) if texts.get(i, text) != text else f"id {ids[text]}"
            raise DotsError(
                f"{token.origin}: {shown(text)} with the id {i} contradicts {shown(other)}"
            )
        texts[i], ids[text] = text, i
        added[i] = token.values.get("special") is True or _looks_special(text)
    return added


def _looks_special(text: str) -> bool:
    """Whether an added token is markup by its look: tokenizers forget to call some special."""
    return text.startswith("<|") and text.endswith("|>")


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes for the bytes 0 to 255 (GPT-2's table)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in kept}
    rest = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(256 + n) for n, byte in enumerate(list(rest))})
    return [letters[byte] for byte in range(256)]


def _check_bytes(texts: dict[int, str], origin: str) -> None:
    missing = set(byte_letters()).difference(texts.values())
    if missing:
        byte = byte_letters().index(min(missing))
        raise DotsError(
            f"{origin}: no token for the byte 0x{byte:02x} ({len(missing)} bytes have none), "
            "so some texts could not be tokenized"
        )


def _merges(bpe: Values, texts: dict[int, str]) -> tuple[str, ...]:
    known = set(texts.values())
    merges = []
    for rank, merge in enumerate(bpe.array("merges")):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and part and " " not in part for part in parts)
        ):
            raise DotsError(f"{bpe.origin}: merge {rank} is {shown(merge)}, expected two tokens")
        left, right = parts
        for text in (left, right, left + right):
            if text not in known:
                raise DotsError(
                    f"{bpe.origin}: merge {rank} needs the token {shown(text)}, which is missing"
                )
        merges.append(f"{left} {right}")
    return tuple(merges)


def _fill_holes(
    texts: dict[int, str], added: dict[int, bool], vocab_size: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens, types, used = [], [], set(texts.values())
    for i in range(vocab_size):
        if i in texts:
            tokens.append(texts[i])
            types.append(NORMAL if i not in added else CONTROL if added[i] else USER_DEFINED)
            continue
        pad = f"[PAD{i}]"
        while pad in used:  # llama.cpp aborts on two equal tokens
            pad += "]"
        used.add(pad)
        tokens.append(pad)
        types.append(UNUSED)
    return tuple(tokens), tuple(types)


def _disagreements(config: Values, tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Where tokenizer_config.json names another text for an id than tokenizer.json."""
    if not config.has("added_tokens_decoder"):
        return ()
    warnings = []
    for key, entry in config.section("added_tokens_decoder").values.items():
        text = entry.get("content") if isinstance(entry, dict) else entry
        i = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        found = tokens[i] if 0 <= i < len(tokens) else None
        if found != text:
            warnings.append(
                f"{config.origin} calls token {key} {shown(text)}, tokenizer.json {shown(found)}: "
                "tokenizer.json is used"
            )
    return tuple(warnings)


def _post_processing(tokenizer: Values) -> tuple[str, ...]:
    """A post-processor that adds tokens has no counterpart: dots.llm1 adds none."""
    post = tokenizer.values.get("post_processor")
    kind = post.get("type") if isinstance(post, dict) else post
    if kind in ("ByteLevel", None):
        return ()
    return (
        f"{tokenizer.origin}: the post_processor {shown(kind)} is not carried over: the GGUF "
        "says that no tokens are added around a text",
    )


def _ends(
    model: Dots1, ids: dict[str, int], config: dict[str, object], folder: Path
) -> tuple[int, int]:
    """(eos, eot). llama.cpp stops at <|endoftext|> by its text, never so at <|endofresponse|>."""
    configured = list(model.eos_ids)
    named = config.get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    if isinstance(text, str) and text in ids:
        configured.append(ids[text])
    reply_end = ids.get(REPLY_END)
    ends = configured if reply_end is None else [reply_end, *configured]
    if not ends:
        raise DotsError(
            f"{folder}: nothing says which token ends a reply: tokenizer.json has no "
            f"{REPLY_END} and config.json no eos_token_id",
            hint="set eos_token_id in config.json",
        )
    others = [i for i in ends if i not in (ends[0], ids.get(TEXT_END))]
    return ends[0], others[0] if others else ends[0]
