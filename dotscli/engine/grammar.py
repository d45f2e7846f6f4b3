"""Grammars of answers: checked, made from JSON schemas, and followed token by token.

llama.cpp's grammars take any time and any memory, in the parser and at every token: it follows all
the ways in which a text could have been made at once, their number can double with every
character, and it aborts where it is surprised. No check beforehand tells which grammars do that
with which answer. So all of it happens in a child (`dotscli.engine.grammar_child`) that is killed
when it takes too long or grows too large. It knows no sampling.
"""

from __future__ import annotations

import base64
import functools
import itertools
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dotscli.errors import DotsError
from dotscli.models.child import Child, ChildError

if TYPE_CHECKING:
    import numpy as np

MAX_SECONDS = 3.0  # for one check, one schema or one token; usual are milliseconds
TOKEN_SECONDS = 0.1  # for every further token of an answer, on top of what is left of these 3 s
VOCABULARY_SECONDS = 60.0  # to read it from a slow disk
MAX_NBYTES = 1 << 30  # of the child; a vocabulary of 152,064 tokens takes a tenth
MAX_TEXT = 1 << 22  # characters of a grammar or schema that are looked at
# No devices are wanted there, and no debugger that looks for the cause when llama.cpp aborts.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "GGML_VK_VISIBLE_DEVICES": "",
    "GGML_NO_BACKTRACE": "1",
}
SIMPLER = "make it simpler: fewer repetitions, optional parts and alternatives that begin alike"
_numbers = itertools.count(1)
_closed: deque[int] = deque()  # told to the child with the next grammar


@functools.cache
def _child() -> Child:
    return Child("dotscli.engine.grammar_child", MAX_NBYTES, ENVIRONMENT)


def _ask(what: str, seconds: float, **question: Any) -> Any:
    try:
        return _child().ask(question, seconds)
    except ChildError as error:
        raise DotsError(_said(what, error), SIMPLER) from error


def _said(what: str, error: ChildError) -> str:
    match error.reason:
        case "time" | "memory":
            return f"{what} can't be used: {error}"
        case "start":
            return f"{what} can't be checked: {error}"
        case "bytes":
            return f"{what} is too long: {error}"
        case _:
            return f"{what} can't be used: {error}"


def let_go() -> None:
    """Ends the child, if there is one; the next grammar starts another."""
    _child().stop()


def check_grammar(text: str) -> None:
    """Refuses what llama.cpp can't parse as GBNF with a rule `root`, or not within the limits.

    Raises:
        DotsError: with the reason, llama.cpp's own where it has one.
    """
    _check_length("the grammar", text)
    _ask("the grammar", MAX_SECONDS, do="check", text=text)


def json_schema_grammar(schema: str) -> str:
    """GBNF whose answers fit a JSON schema.

    Args:
        schema: JSON text of an object. References may only point into the schema itself.

    Raises:
        DotsError: no JSON, a schema that the converter does not support, or one that takes more
            time or memory than there is for it.
    """
    _check_length("the JSON schema", schema)
    return str(_ask("the JSON schema", MAX_SECONDS, do="schema", text=schema))


def _check_length(what: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise DotsError(f"{what} has {len(text)} characters, the limit is {MAX_TEXT}")


class Grammar:
    """A grammar with the place in it that an answer has reached.

    Raises:
        DotsError: the grammar does not parse, or llama.cpp does not read the vocabulary.
    """

    def __init__(self, text: str, model: Path, refused: Sequence[int]) -> None:
        """
        Args:
            text: GBNF with a rule `root`.
            model: the GGUF whose vocabulary the tokens are of, checked.
            refused: ids that the grammar never allows.
        """
        _check_length("the grammar", text)
        self._number = next(_numbers)
        self._chosen: list[int] = []
        path = str(model.absolute())
        _ask("the grammar", VOCABULARY_SECONDS, do="vocabulary", model=path)
        self._left_s = MAX_SECONDS
        self._ask_in_time(
            do="open", number=self._number, text=text, model=path, refused=list(refused),
            closed=[_closed.popleft() for _ in range(len(_closed))],
        )  # fmt: skip

    def take(self, token: int) -> np.ndarray | None:
        """None if the grammar allows the token next: it is part of the answer then.

        Else which tokens it allows: bool (n_vocab,). One of them goes to `chosen`.

        Raises:
            DotsError: it takes too long or too much memory to say.
        """
        question = {"do": "take", "number": self._number, "token": token, "chosen": self._chosen}
        self._chosen = []
        self._left_s = min(MAX_SECONDS, self._left_s + TOKEN_SECONDS)
        answer = self._ask_in_time(**question)
        if answer is None:
            return None
        import numpy as np

        bits = base64.b64decode(answer)
        n_vocab = int.from_bytes(bits[:4], "little")
        return np.unpackbits(np.frombuffer(bits[4:], np.uint8), count=n_vocab).astype(bool)

    def _ask_in_time(self, **question: Any) -> Any:
        """One grammar may not spend its 3 s at every token."""
        began = perf_counter()
        try:
            return _ask("the grammar", max(TOKEN_SECONDS, self._left_s), **question)
        finally:
            self._left_s -= perf_counter() - began

    def chosen(self, token: int) -> None:
        """Makes an allowed token part of the answer. The child hears of it with the next one."""
        self._chosen.append(token)

    def close(self) -> None:
        """It is not needed any more. Asks nothing: it may be called when garbage is collected."""
        _closed.append(self._number)
