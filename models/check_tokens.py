"""What the tokenizer in a dots1 GGUF must be before llama.cpp builds its vocabulary from it."""

from __future__ import annotations

from dotscli.errors import DotsError
from dotscli.models.gguf_bytes import shown
from dotscli.models.gguf_file import GgufArray, GgufFile
from dotscli.models.gguf_type import BOOL, FLOAT32, INT32, STRING, UINT32, VALUE_NAMES

TOKENS = "tokenizer.ggml.tokens"
MAX_VOCAB = 1 << 20
MAX_TOKEN = 2048  # bytes; llama.cpp's grammars recurse once per character of a token
MAX_TEMPLATE = 1 << 20
TOKEN_TYPES = range(1, 6)  # enum llama_token_type: normal, unknown, control, user-defined, unused
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix")
HINT = "quantize it again with: dots quantize CHECKPOINT"


def check_tokens(gguf: GgufFile) -> None:
    """Refuses a vocabulary that would abort llama.cpp or tokenize wrongly.

    Raises:
        DotsError: with the file, the key and the value.
    """
    _check_text(gguf, "tokenizer.ggml.model", "gpt2")
    _check_text(gguf, "tokenizer.ggml.pre", "qwen2")
    tokens = _array(gguf, TOKENS, STRING)
    if not 0 < len(tokens) <= MAX_VOCAB:
        raise DotsError(f"{gguf.path}: {TOKENS} has {len(tokens)} tokens", hint=HINT)
    if tokens.longest > MAX_TOKEN:
        raise DotsError(
            f"{gguf.path}: a token of {tokens.longest} bytes, the limit is {MAX_TOKEN}", hint=HINT
        )
    _check_distinct(gguf, tokens.byte_strings())
    types = _array(gguf, "tokenizer.ggml.token_type", INT32)
    _check_length(gguf, "tokenizer.ggml.token_type", types, len(tokens))
    strange = set(types.numbers()) - set(TOKEN_TYPES)
    if strange:
        raise DotsError(
            f"{gguf.path}: tokenizer.ggml.token_type has the value {min(strange):g}", hint=HINT
        )
    if "tokenizer.ggml.scores" in gguf.metadata:
        scores = _array(gguf, "tokenizer.ggml.scores", FLOAT32)
        _check_length(gguf, "tokenizer.ggml.scores", scores, len(tokens))
    _check_merges(gguf)
    _check_special(gguf, len(tokens))
    template = gguf.metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise DotsError(
            f"{gguf.path}: tokenizer.chat_template is not a text of reasonable size", hint=HINT
        )


def _check_text(gguf: GgufFile, key: str, wanted: str) -> None:
    if gguf.metadata.get(key) != wanted:
        raise DotsError(
            f"{gguf.path}: {key} is {shown(gguf.metadata.get(key))}, dots.llm1 has {wanted!r}",
            hint=HINT,
        )


def _array(gguf: GgufFile, key: str, kind: int) -> GgufArray:
    value = gguf.metadata.get(key)
    if not isinstance(value, GgufArray) or value.element_type != kind:
        found = "missing" if value is None else "of another type"
        raise DotsError(
            f"{gguf.path}: {key}, an array of {VALUE_NAMES[kind]}, is {found}", hint=HINT
        )
    return value


def _check_length(gguf: GgufFile, key: str, array: GgufArray, n_tokens: int) -> None:
    if len(array) != n_tokens:
        raise DotsError(
            f"{gguf.path}: {key} has {len(array)} elements for {n_tokens} tokens", hint=HINT
        )


def _check_distinct(gguf: GgufFile, tokens: list[bytes]) -> None:
    """llama.cpp asserts that no token comes twice, and gives empty ones names of its own."""
    joined = b"\0".join(tokens)  # valid as a whole exactly if every part is
    try:
        joined.decode("utf-8")
    except UnicodeDecodeError as error:
        number = joined.count(b"\0", 0, error.start)
        raise DotsError(f"{gguf.path}: token {number} is not UTF-8", hint=HINT) from error
    if joined.count(b"\0") != len(tokens) - 1:  # llama.cpp cuts them there: two may become one
        number = next(i for i, token in enumerate(tokens) if b"\0" in token)
        raise DotsError(f"{gguf.path}: token {number} contains a NUL byte", hint=HINT)
    if len(set(tokens)) == len(tokens) and b"" not in tokens:
        return
    seen: set[bytes] = set()
    for number, token in enumerate(tokens):
        if not token or token in seen:
            what = f"is {shown(token.decode())} for a second time" if token else "is empty"
            raise DotsError(f"{gguf.path}: token {number} {what}", hint=HINT)
        seen.add(token)


def _check_merges(gguf: GgufFile) -> None:
    merges = _array(gguf, "tokenizer.ggml.merges", STRING)
    if merges.longest > 2 * MAX_TOKEN + 1:
        raise DotsError(f"{gguf.path}: a merge of {merges.longest} bytes", hint=HINT)
    for number, merge in enumerate(merges.byte_strings()):
        if merge.find(b" ", 1, -1) < 1 or merge.count(b" ") != 1 or b"\0" in merge:
            raise DotsError(
                f"{gguf.path}: merge {number} is {merge[:40]!r}, not two tokens", hint=HINT
            )


def _check_special(gguf: GgufFile, n_tokens: int) -> None:
    if "tokenizer.ggml.eos_token_id" not in gguf.metadata:
        raise DotsError(f"{gguf.path}: the key tokenizer.ggml.eos_token_id is missing", hint=HINT)
    for key, value in gguf.metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            whole = gguf.types[key] == UINT32 and isinstance(value, int)
            if not whole or not 0 <= value < n_tokens:  # type: ignore[operator]  # an int if whole
                raise DotsError(
                    f"{gguf.path}: {key} is {shown(value)}, not one of {n_tokens} tokens",
                    hint=HINT,
                )
    for flag in FLAGS:
        if gguf.types.get(f"tokenizer.ggml.{flag}", BOOL) != BOOL:
            raise DotsError(f"{gguf.path}: tokenizer.ggml.{flag} is not a bool", hint=HINT)
