"""A sampling chain of llama.cpp, built once for one answer, and the grammar beside it.

Without a grammar one C call per token does everything. With one, the token is sampled first and
only then shown to the grammar; where the grammar objects, the whole vocabulary goes through it
and the chain samples again. Judging one token costs microseconds, judging 152,064 milliseconds,
and the model mostly wants what the grammar allows (llama.cpp's own programs do the same). The
grammar itself lives in another process, `dotscli.engine.grammar`.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dotscli.engine.decode import not_numbers
from dotscli.engine.grammar import Grammar
from dotscli.engine.lib import llama
from dotscli.engine.sampling import Sampling
from dotscli.errors import DotsError

if TYPE_CHECKING:
    import numpy as np


def nothing_allowed() -> DotsError:
    """What to say when no token of the vocabulary continues the answer as the grammar wants."""
    return DotsError(
        "the grammar allows none of the model's tokens here",
        hint="loosen the grammar or the schema",
    )


class Sampler:
    """Draws the next token from the logits of the last decode.

    Raises:
        DotsError: the grammar does not parse, or later allows no token of the vocabulary.
    """

    def __init__(
        self,
        context: Any,
        vocab: Any,
        sampling: Sampling,
        markup: Callable[[], Sequence[int]],
        model: Path,
    ) -> None:
        """
        Args:
            context: whose logits are sampled.
            vocab: of the model of that context.
            sampling: with its seed drawn.
            markup: ids of the control tokens that do not end an answer. llama.cpp's grammars read
                such a token as its name, <|system|> for instance, which any rule for free text
                would let in; under a grammar they are never drawn.
            model: the file of that vocabulary.
        """
        self._api = llama()
        self._context = context
        self._vocab = vocab
        self._markup = markup
        self._grammar = (
            Grammar(sampling.grammar, model, markup()) if sampling.grammar is not None else None
        )
        self._chain = _chain(self._api, sampling, self._api.llama_vocab_n_tokens(vocab))
        # freed also if the answer is never asked for
        self._freed: list[Callable[[], Any]] = [
            weakref.finalize(self, self._api.llama_sampler_free, self._chain)
        ]
        if self._grammar is not None:
            self._freed.append(weakref.finalize(self, self._grammar.close))
        self._penalizes = sampling.penalizes
        self._last_n = sampling.repeat_last_n

    def remember(self, tokens: Sequence[int]) -> None:
        """Shows the penalties the end of the prompt, which they judge like the answer."""
        if self._penalizes:
            for token in tokens[-self._last_n :]:
                self._api.llama_sampler_accept(self._chain, token)

    def sample(self, row: int = -1) -> int:
        """The next token; it counts for penalties and grammar at once.

        Args:
            row: of the last batch, whose token it follows; -1: the last one.
        """
        if self._grammar is None:
            return int(self._api.llama_sampler_sample(self._chain, self._context, row))
        token = self._apply_chain(self._candidates(row))
        allowed = self._grammar.take(token)
        if allowed is not None:
            token = self._sample_of(allowed, row)
            self._grammar.chosen(token)
        self._api.llama_sampler_accept(self._chain, token)
        return token

    def free(self) -> None:
        """Gives the chain back to C; harmless when done twice."""
        for free in self._freed:
            free()

    def _candidates(self, row: int) -> Any:
        """The last logits as (id, logit, p) records, fresh for a pass through the samplers."""
        import numpy as np

        n_vocab = self._api.llama_vocab_n_tokens(self._vocab)
        records = np.zeros(n_vocab, dtype=[("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        records["id"] = np.arange(n_vocab, dtype=np.int32)
        logits = self._api.llama_get_logits_ith(self._context, row)
        records["logit"] = np.ctypeslib.as_array(logits, shape=(n_vocab,))
        if not np.isfinite(records["logit"]).all():
            raise not_numbers()
        records["logit"][self._markup()] = -np.inf
        return records

    def _sample_of(self, allowed: np.ndarray, row: int) -> int:
        import numpy as np

        records = self._candidates(row)
        records["logit"][~allowed] = -np.inf
        if np.isneginf(records["logit"]).all():
            raise nothing_allowed()
        token = self._apply_chain(records)
        if not allowed[token]:
            raise nothing_allowed()  # the grammar's process would abort
        return token

    def _apply_chain(self, records: Any) -> int:
        array = self._array(records)
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _array(self, records: Any) -> Any:
        data = records.ctypes.data_as(self._api.llama_token_data_p)
        return self._api.llama_token_data_array(data, len(records), -1, False)


def _chain(api: Any, sampling: Sampling, n_vocab: int) -> Any:
    makers = {
        "penalties": lambda *a: api.llama_sampler_init_penalties(n_vocab, *a),
        "top_k": api.llama_sampler_init_top_k,
        "top_p": lambda p: api.llama_sampler_init_top_p(p, 1),
        "min_p": lambda p: api.llama_sampler_init_min_p(p, 1),
        "temp": api.llama_sampler_init_temp,
        "dist": api.llama_sampler_init_dist,
        "greedy": api.llama_sampler_init_greedy,
    }
    params = api.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = api.llama_sampler_chain_init(params)
    for name, *arguments in sampling.steps():
        api.llama_sampler_chain_add(chain, makers[str(name)](*arguments))
    return chain
