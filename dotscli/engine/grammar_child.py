"""The process that grammars live in: `dotscli.models.child` starts it, `grammar.py` asks it.

llama.cpp runs here with nothing but a vocabulary. When it hangs, grows or aborts, only this
process ends, and what it prints about grammars goes to this process's stderr.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dotscli.engine.grammar_rules import gbnf_of_schema, screen
from dotscli.engine.lib import llama
from dotscli.engine.log import log
from dotscli.engine.vocab import Vocabulary, vocabulary_of
from dotscli.errors import DotsError
from dotscli.models.child_loop import serve

MAX_NBYTES = 1 << 30
PARSER_SAYS = "parse: error parsing grammar: "


def main() -> None:
    """Answers questions about grammars until the parent is gone."""
    serve(_answer, MAX_NBYTES, opens_files=True)


class _Followed:
    """A grammar of llama.cpp and where an answer is in it."""

    def __init__(self, text: str, vocabulary: Vocabulary, refused: list[int]) -> None:
        self._api = llama()
        self._n_tokens = vocabulary.n_tokens
        self._refused = refused
        self._sampler = _parsed(text, vocabulary.handle)

    def take(self, token: int, chosen: list[int]) -> str | None:
        """None if a token comes next, else which could, after those that were chosen."""
        for before in chosen:
            self._api.llama_sampler_accept(self._sampler, before)
        if not self._may_come(token):
            return self._allowed()
        self._api.llama_sampler_accept(self._sampler, token)
        return None

    def _may_come(self, token: int) -> bool:
        if not 0 <= token < self._n_tokens or token in self._refused:
            return False
        one = self._api.llama_token_data(token, 1.0, 0.0)
        self._apply(ctypes.pointer(one), 1)
        return bool(one.logit == 1.0)

    def _allowed(self) -> str:
        import numpy as np

        records = np.zeros(self._n_tokens, dtype=[("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        records["id"] = np.arange(self._n_tokens, dtype=np.int32)
        self._apply(records.ctypes.data_as(self._api.llama_token_data_p), self._n_tokens)
        allowed = records["logit"] == 0.0
        allowed[self._refused] = False
        bits = np.packbits(allowed).tobytes()
        return base64.b64encode(self._n_tokens.to_bytes(4, "little") + bits).decode("ascii")

    def _apply(self, data: Any, count: int) -> None:
        array = self._api.llama_token_data_array(data, count, -1, False)
        self._api.llama_sampler_apply(self._sampler, ctypes.byref(array))

    def free(self) -> None:
        self._api.llama_sampler_free(self._sampler)


_open: dict[int, _Followed] = {}
_kept = ExitStack()  # vocabularies, for as long as the process lives


@functools.cache
def _vocabulary(path: str) -> Vocabulary:
    return _kept.enter_context(vocabulary_of(Path(path)))


def _answer(question: Any) -> Any:
    number = question.get("number")
    match question["do"]:
        case "schema":
            grammar = gbnf_of_schema(question["text"])
            _check(grammar)
            return grammar
        case "check":
            _check(question["text"])
        case "vocabulary":
            _vocabulary(question["model"])
        case "open":
            for closed in question["closed"]:
                if closed in _open:
                    _open.pop(closed).free()
            vocabulary = _vocabulary(question["model"])
            _open[number] = _Followed(question["text"], vocabulary, question["refused"])
        case "take":
            return _followed(number).take(question["token"], question["chosen"])
    return None


def _followed(number: int) -> _Followed:
    if number not in _open:
        raise DotsError("the grammar is gone: its process has ended", hint="ask again")
    return _open[number]


def _check(text: str) -> None:
    llama().llama_sampler_free(_parsed(text, None))


def _parsed(text: str, vocabulary: Any) -> Any:
    """A sampler of llama.cpp for the grammar; without a vocabulary it can only be freed."""
    screen(text)
    log().clear()
    before = os.lseek(2, 0, os.SEEK_END)
    sampler = llama().llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
    if not sampler:
        reasons = _parser_said(before) or log().complaints()[:1] or ["no reason given"]
        raise DotsError(
            f"the grammar is not valid GBNF: {reasons[0]}", hint="it needs a rule `root ::= ...`"
        )
    return sampler


def _parser_said(before: int) -> list[str]:
    """The parser prints its reason, and what it stopped at, past the log."""
    os.lseek(2, before, os.SEEK_SET)
    said = os.read(2, 2000).decode("utf-8", "replace")
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    if not said.startswith(PARSER_SAYS):
        return []
    reason = " ".join(said.removeprefix(PARSER_SAYS).split("\n")[0].split())
    return [reason if len(reason) <= 120 else reason[:120] + "..."]
