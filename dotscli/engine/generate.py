"""The loop of an answer: evaluate the prompt, then sample, say, evaluate, again and again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from dotscli.engine.decode import Decoder
from dotscli.engine.sampler import Sampler
from dotscli.engine.stream import Piece, Stats, TextStream
from dotscli.engine.vocab import Vocabulary

if TYPE_CHECKING:
    from dotscli.engine.hot.experts import HotExperts
    from dotscli.engine.hot.tier import MemoryTier


@dataclass(frozen=True)
class Limits:
    """Where an answer ends at the latest: tokens in the context, tokens sampled (-1: any)."""

    n_ctx: int
    n_predict: int


class Answer:
    """One continuation of a checked prompt; iterate `pieces` once.

    `stats` is right at any time, also after the iterator was closed or interrupted.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        sampler: Sampler,
        prompt: Sequence[int],
        limits: Limits,
        text: TextStream,
        hot: HotExperts | None,
        tier: MemoryTier | None = None,
    ) -> None:
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._sampler = sampler
        self._prompt = prompt
        self._limits = limits
        self._text = text
        self._hot = hot
        self._tier = tier
        self._reused = 0
        self._evaluated = 0  # of the prompt, in batches that are finished
        self._completion = 0
        self._prefill_s = 0.0
        self._decode_s = 0.0
        self._ttft_s = 0.0

    @property
    def stats(self) -> Stats:
        """Figures up to now."""
        return Stats(
            prompt_tokens=self._reused + self._evaluated,
            reused_tokens=self._reused,
            completion_tokens=self._completion,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            ttft_s=self._ttft_s,
            hot=self._hot.figures() if self._hot is not None else None,
            ram=self._tier.figures() if self._tier is not None else None,
        )

    def pieces(self, on_prefill: Callable[[int, int], None] | None) -> Generator[Piece, None, None]:
        """The answer as it comes; the closing piece has the reason and the stats."""
        try:
            if self._hot is not None:
                self._hot.mark()
            if self._tier is not None:
                self._tier.mark()
            started = perf_counter()
            self._reused = self._decoder.reuse(self._prompt)
            self._sampler.remember(self._prompt)
            self._prefill(on_prefill, started)
            reason = "length"
            if self._limits.n_predict != 0:
                reason = yield from self._decoded(started)
        finally:
            self._sampler.free()
        yield Piece(self._text.flush(), finish_reason=reason, stats=self.stats)

    def _prefill(self, on_prefill: Callable[[int, int], None] | None, started: float) -> None:
        def count(done: int, total: int) -> None:
            self._evaluated = done
            if on_prefill is not None:
                on_prefill(done, total)

        try:
            self._decoder.prefill(self._prompt[self._reused :], count)
            self._decoder.check_output()
        finally:
            self._prefill_s = perf_counter() - started
            if self._tier is not None:
                self._tier.prefilled()

    def _decoded(self, started: float) -> Generator[Piece, None, str]:
        decoder, text, n_ctx = self._decoder, self._text, self._limits.n_ctx
        sample, decode = self._sampler.sample, decoder.decode
        piece, is_end = self._vocabulary.piece, self._vocabulary.is_end
        cached, n_predict = decoder.cached, self._limits.n_predict

        token = sample()
        self._completion = 1
        now = perf_counter()
        self._ttft_s = now - started
        while not is_end(token):
            said = text.feed(piece(token))
            self._decode_s += perf_counter() - now
            yield Piece(said, token)
            now = perf_counter()
            if text.stopped:
                return "stop"
            if self._completion == n_predict:
                return "length"
            if len(cached) == n_ctx:
                return "context"
            decode(token)
            token = sample()
            self._completion += 1
        self._decode_s += perf_counter() - now
        return "stop"
