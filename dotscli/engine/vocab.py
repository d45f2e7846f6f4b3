"""The vocabulary of a loaded model: text to ids and ids to bytes, as llama.cpp does it."""

from __future__ import annotations

import codecs
import ctypes
import functools
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dotscli.engine.lib import llama
from dotscli.engine.log import log
from dotscli.errors import DotsError

MAX_UTF8 = 4  # bytes of a character
MAX_TEXT = 1 << 30  # bytes; llama.cpp counts in int32


class Vocabulary:
    """Tokenizer and detokenizer on one llama_vocab."""

    def __init__(self, handle: Any) -> None:
        self._api = llama()
        self.handle = handle
        self.n_tokens = int(self._api.llama_vocab_n_tokens(handle))
        self._buffer = ctypes.create_string_buffer(256)

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of a text, nothing added before or after it.

        The text is brought to NFC first, as Qwen2's tokenizer.json says and llama.cpp does not.

        Raises:
            DotsError: more than 1 GiB of text.
        """
        data = unicodedata.normalize("NFC", text).encode(
            "utf-8", "replace"
        )  # a lone surrogate has no UTF-8
        if not data:
            return []
        if len(data) > MAX_TEXT:
            raise DotsError(f"the text has {len(data)} bytes, the limit is {MAX_TEXT}")
        capacity = len(data)
        while True:
            ids = (ctypes.c_int32 * capacity)()
            count = self._api.llama_tokenize(
                self.handle, data, len(data), ids, capacity, False, parse_special
            )
            if count >= 0:
                return ids[:count]
            capacity = -count

    def check(self, tokens: Sequence[int]) -> None:
        """Refuse an id outside the vocabulary: llama.cpp would read past its end.

        Raises:
            DotsError: there is one.
        """
        if tokens and (min(tokens) < 0 or max(tokens) >= self.n_tokens):
            raise DotsError(f"a token id is outside 0 to {self.n_tokens - 1}")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token; the id must lie in the vocabulary."""
        buffer = self._buffer
        size = self._api.llama_token_to_piece(self.handle, token, buffer, len(buffer), 0, special)
        if size >= 0:
            return buffer.raw[:size]
        self._buffer = ctypes.create_string_buffer(-size)
        return self.piece(token, special=special)

    def whole(self, tokens: Sequence[int]) -> list[int]:
        """The tokens without those at the end whose bytes only begin a character."""
        for n in range(len(tokens), max(0, len(tokens) - MAX_UTF8), -1):
            tail = b"".join(self.piece(token) for token in tokens[max(0, n - MAX_UTF8) : n])
            if _ends_whole(tail):
                return list(tokens[:n])
        return list(tokens)

    def is_end(self, token: int) -> bool:
        """Whether a reply ends with this token."""
        return bool(self._api.llama_vocab_is_eog(self.handle, token))

    def text(self, token: int) -> str:
        """Name of a special token such as eos; empty if the model has none."""
        if not 0 <= token < self.n_tokens:
            return ""
        name = self._api.llama_vocab_get_text(self.handle, token)
        return str(name.decode("utf-8", "replace"))

    def named(self, metadata: Mapping[str, str]) -> tuple[str, str]:
        """Texts of eos and bos where the file names them; llama.cpp makes up those it does not."""
        keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "bos"))
        eos, bos = (self.text(int(metadata[key])) if key in metadata else "" for key in keys)
        return eos, bos

    @functools.cached_property
    def markup(self) -> list[int]:
        """Ids of the control tokens that do not end a reply."""
        is_control = self._api.llama_vocab_is_control
        return [
            token
            for token in range(self.n_tokens)
            if is_control(self.handle, token) and not self.is_end(token)
        ]


def _ends_whole(data: bytes) -> bool:
    """Whether the last character of UTF-8 is complete; bytes that are no UTF-8 count as such."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return not decoder.getstate()[0]


@contextmanager
def vocabulary_of(path: Path) -> Iterator[Vocabulary]:
    """The vocabulary of a GGUF that `check_dots1` has passed; no weight is read.

    Raises:
        DotsError: llama.cpp refuses the file, with its reason as the hint.
    """
    api = llama()
    log().clear()
    params = api.llama_model_default_params()
    params.vocab_only = True
    model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        said = "; ".join(log().complaints())
        raise DotsError(
            f"{path}: llama.cpp can't read its vocabulary", hint=f"llama.cpp says: {said}"
        )
    try:
        yield Vocabulary(api.llama_model_get_vocab(model))
    finally:
        api.llama_model_free(model)
