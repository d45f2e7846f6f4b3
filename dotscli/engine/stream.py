"""What comes out of the engine: pieces of text, why they ended, and how long they took.

`TextStream` turns the bytes of tokens into text: UTF-8 characters that are split over tokens are
put together, stop strings are found across token borders, and no more is held back than could
still become a stop string. It knows neither tokens nor models, and it does no I/O.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dotscli.errors import DotsError, ExitStatus

MAX_STOPS = 64
MAX_STOP = 1024  # characters; every piece of an answer is compared with all beginnings of it


@dataclass(frozen=True)
class HotFigures:
    """What hot experts did for one generation; a pair is one token at one of its experts.

    `decode` counts batches of up to 8 tokens. `resident_experts`, `layers_off` and
    `uploaded_nbytes` are since the load, the first placement included. Times are seconds of the
    computing thread: with the CPU's pairs, with the device, and of that waiting for the device.
    `streamed_nbytes` went through the device for long prompts without staying there.
    """

    device: str
    resident_experts: int
    n_experts: int
    layers_off: int
    decode_hits: int
    decode_misses: int
    prefill_hits: int
    prefill_misses: int
    uploads: int
    uploaded_nbytes: int
    streamed_nbytes: int
    cpu_s: float
    device_s: float
    wait_s: float

    @property
    def hit_rate(self) -> float:
        """Part of the pairs that the device computed while decoding; 0 if there were none."""
        return self.decode_hits / max(1, self.decode_hits + self.decode_misses)

    @property
    def prefill_hit_rate(self) -> float:
        """The same for larger batches."""
        return self.prefill_hits / max(1, self.prefill_hits + self.prefill_misses)

    @property
    def resident_share(self) -> float:
        """Part of the routed experts that have a copy on the device."""
        return self.resident_experts / max(1, self.n_experts)


@dataclass(frozen=True)
class RamFigures:
    """What the memory tier did for one generation; a pair is one token at one of its experts.

    `decode` counts batches of up to 8 tokens; a hit was in main memory when it was wanted. The
    first five are as of now: experts in main memory, of those that are read when they are needed,
    with the bytes that they take and may take, and whether reads go past the page cache. Of
    `read_nbytes`, `decode_read_nbytes` came after the prompt; `wait_s` is what computing threads
    waited for the disk.
    """

    resident_experts: int
    n_experts: int
    resident_nbytes: int
    budget_nbytes: int
    direct: bool
    decode_hits: int
    decode_misses: int
    prefill_hits: int
    prefill_misses: int
    read_nbytes: int
    decode_read_nbytes: int
    wait_s: float

    @property
    def hit_rate(self) -> float:
        """Part of the pairs that found their expert while decoding; 0 if there were none."""
        return self.decode_hits / max(1, self.decode_hits + self.decode_misses)

    @property
    def resident_share(self) -> float:
        """Part of these experts that is in main memory."""
        return self.resident_experts / max(1, self.n_experts)


@dataclass(frozen=True)
class Stats:
    """Figures of one generation. Times are seconds spent in the engine, not in its consumer.

    The first token comes out of the prefill; every further one costs one decode, so `decode_s`
    covers `completion_tokens - 1` of them. `ttft_s` runs from the request to the first token.
    `prompt_tokens` are those that were read, or found in the cache: fewer than were given where
    somebody broke off before. Of `drafted_tokens`, guessed and evaluated ahead, `accepted_tokens`
    came true.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    hot: HotFigures | None = None
    ram: RamFigures | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens evaluated per second, those taken from the cache not counted."""
        evaluated = self.prompt_tokens - self.reused_tokens
        return evaluated / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens decoded per second after the first; 0 when there was none to measure."""
        decoded = self.completion_tokens - 1
        return decoded / self.decode_s if decoded > 0 and self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Piece:
    """A bit of the answer, as soon as it is certain.

    `text` may be empty while a character or a possible stop string is incomplete. `token` is the
    id that was sampled last, None on the closing piece. Only the closing piece has a
    `finish_reason` ("stop": end token or stop string, "length": n_predict reached, "context": the
    context is full, "interrupted": for consumers that end an answer themselves) and `stats`.
    """

    text: str
    token: int | None = None
    finish_reason: str | None = None
    stats: Stats | None = None


def joined(first: Stats, then: Stats) -> Stats:
    """Figures of one generation in two parts: what was made and the time it took are added up.

    Of what a memory did, the figures of the second part stand.
    """
    if not first.completion_tokens:
        return then
    return replace(
        then,
        completion_tokens=first.completion_tokens + then.completion_tokens,
        decode_s=first.decode_s + then.decode_s,
        ttft_s=first.ttft_s,
        drafted_tokens=first.drafted_tokens + then.drafted_tokens,
        accepted_tokens=first.accepted_tokens + then.accepted_tokens,
    )


def check_stop(stop: Sequence[str]) -> None:
    """Refuses stop strings that end every answer, or that cost more than the answer.

    Raises:
        DotsError: an empty one, a long one, or many (exit status 2).
    """
    if "" in stop:
        raise DotsError(
            "--stop: a stop string is empty", "give at least one character", ExitStatus.USAGE
        )
    if len(stop) > MAX_STOPS or any(len(text) > MAX_STOP for text in stop):
        raise DotsError(
            f"--stop: {len(stop)} texts, the longest of {max(map(len, stop))} characters",
            hint=f"give at most {MAX_STOPS} of at most {MAX_STOP} characters",
            exit_status=ExitStatus.USAGE,
        )


class TextStream:
    """Incremental UTF-8 decoding with stop strings.

    The text ends before the stop string that is complete first; if several end at the same
    character, the longest counts. Invalid bytes become U+FFFD exactly as in
    `bytes.decode("utf-8", "replace")`, wherever the input is cut.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """
        Args:
            stop: strings that end the answer and are not part of it.

        Raises:
            DotsError: as `check_stop`.
        """
        check_stop(stop)
        self._stop = tuple(dict.fromkeys(stop))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """Text that has become certain with these bytes; empty after a stop string."""
        if self.stopped:
            return ""
        text = self._decoder.decode(data)
        return self._release(text) if self._stop else text

    def flush(self) -> str:
        """What was held back, now that nothing follows: half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        held = self._held + text
        ends = [
            (start + len(stop), start) for stop in self._stop if (start := held.find(stop)) >= 0
        ]
        if ends:
            self.stopped = True
            self._held = ""
            return held[: min(ends)[1]]
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
