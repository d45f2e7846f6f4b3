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
    from dotscli.engine.draft import Drafts
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
        drafts: Callable[[], Drafts | None] = lambda: None,
    ) -> None:
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._sampler = sampler
        self._prompt = prompt
        self._limits = limits
        self._text = text
        self._hot = hot
        self._tier = tier
        self._new_drafts = drafts
        self._drafts: Drafts | None = None
        self._n_past = 0  # tokens that stay in the cache, whatever was guessed behind them
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
            drafted_tokens=self._drafts.n_drafted if self._drafts else 0,
            accepted_tokens=self._drafts.n_accepted if self._drafts else 0,
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
            if self._drafts is not None:  # a kept context must not hold what was never said
                self._decoder.settle()
                self._decoder.keep(self._n_past)
        yield Piece(self._text.flush(), finish_reason=reason, stats=self.stats)

    def _decode(self, token: int, n_past: int, room: int) -> list[int]:
        """Evaluate a token, and behind it what was guessed; the guesses.

        Args:
            n_past: tokens that the cache holds afterwards, guesses not counted.
            room: tokens that may come behind them.
        """
        decoder, drafts = self._decoder, self._drafts
        if drafts is None:
            decoder.decode(token)
            return []
        if len(decoder.cached) >= n_past:
            decoder.keep(n_past - 1)  # guesses that were wrong
        ahead = drafts.ahead(min(room, decoder.n_batch - 1))
        began = perf_counter()
        if ahead:
            decoder.decode_ahead([token, *ahead])
        else:
            decoder.decode(token)
        drafts.took(1 + len(ahead), perf_counter() - began)
        return ahead

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
        text, n_ctx, n_predict = self._text, self._limits.n_ctx, self._limits.n_predict
        sample, decoder = self._sampler.sample, self._decoder
        piece, is_end = self._vocabulary.piece, self._vocabulary.is_end
        self._n_past = len(decoder.cached)
        ahead: list[int] = []  # guesses that were evaluated with the last token
        row = 0  # those of them that came true

        token = sample()
        self._completion = 1
        now = perf_counter()
        self._ttft_s = now - started
        drafts = self._drafts = self._new_drafts()
        while not is_end(token):
            if drafts is not None:
                drafts.said(token)
            said = text.feed(piece(token))
            self._decode_s += perf_counter() - now
            yield Piece(said, token)
            now = perf_counter()
            if text.stopped:
                return "stop"
            if self._completion == n_predict:
                return "length"
            if self._n_past == n_ctx:
                return "context"
            self._n_past += 1
            if drafts is not None and row < len(ahead) and token == ahead[row]:
                row += 1  # it has been evaluated already
                drafts.n_accepted += 1
            else:
                ahead, row = self._decode(token, self._n_past, n_ctx - self._n_past), 0
            token = sample(row if ahead else -1)
            self._completion += 1
        self._decode_s += perf_counter() - now
        return "stop"
