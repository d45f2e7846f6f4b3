"""Tokens into the cache, logits out: llama_decode with one batch that is used again and again."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dotscli.engine.interrupt import signals_noted
from dotscli.engine.lib import llama
from dotscli.engine.log import log
from dotscli.engine.options import MAX_OUTPUTS
from dotscli.errors import DotsError

if TYPE_CHECKING:
    import numpy as np

ABORTED = 2  # llama_decode: stopped by the abort callback


def not_numbers() -> DotsError:
    """What to say about logits that are NaN or infinite: sampling would make an answer of them."""
    return DotsError(
        "the model computes NaN or infinity: its weights are damaged",
        hint="dots verify FILE.gguf shows where; download or quantize the file again",
    )


class Decoder:
    """One context and the tokens that its cache holds, in order.

    Args:
        failure: why experts couldn't be read, for contexts that read them while they compute.
            Single tokens then end at a Ctrl-C too, for they may take seconds.
    """

    def __init__(
        self, context: Any, n_vocab: int, failure: Callable[[], str] | None = None
    ) -> None:
        self._api = llama()
        self._failure = failure
        self._context = context
        self._memory = self._api.llama_get_memory(context)
        self._n_vocab = n_vocab
        self.n_batch = int(self._api.llama_n_batch(context))  # tokens at once at most
        self._ids = (ctypes.c_int32 * self.n_batch)()
        self._outputs = (ctypes.c_int8 * self.n_batch)()
        self._batch = self._api.llama_batch()  # no positions, no sequences: llama.cpp counts
        self._batch.token = ctypes.cast(self._ids, ctypes.POINTER(ctypes.c_int32))
        self._batch.logits = ctypes.cast(self._outputs, ctypes.POINTER(ctypes.c_int8))
        self.cached: list[int] = []

    @property
    def context(self) -> Any:
        """The llama_context."""
        return self._context

    def settle(self) -> None:
        """Makes the list and llama.cpp's cache agree, whatever interrupted the last call."""
        held = int(self._api.llama_memory_seq_pos_max(self._memory, 0)) + 1
        self.keep(min(held, len(self.cached)))

    def keep(self, count: int) -> None:
        """Shortens the cache to its first `count` tokens."""
        del self.cached[count:]
        if not self._api.llama_memory_seq_rm(self._memory, 0, count, -1):
            self.cached.clear()
            self._api.llama_memory_clear(self._memory, False)

    def state_nbytes(self) -> int:
        """Bytes of what the context holds."""
        return int(self._api.llama_state_seq_get_size(self._context, 0))

    def save(self, to: memoryview) -> None:
        """Copies what the context holds, `state_nbytes` bytes.

        Raises:
            DotsError: llama.cpp gives another number of bytes.
        """
        place = (ctypes.c_uint8 * len(to)).from_buffer(to)
        written = self._api.llama_state_seq_get_data(self._context, place, len(to), 0)
        del place
        if written != len(to):
            raise DotsError("llama.cpp can't give its state")

    def restore(self, state: memoryview, tokens: Sequence[int]) -> bool:
        """Makes the context hold these tokens; False, and nothing is held, if llama.cpp can't."""
        place = (ctypes.c_uint8 * len(state)).from_buffer(state)
        self.cached[:] = tokens
        taken = self._api.llama_state_seq_set_data(self._context, place, len(state), 0)
        del place
        held = int(self._api.llama_memory_seq_pos_max(self._memory, 0)) + 1
        if taken == len(state) and held == len(tokens):
            return True
        self.cached.clear()
        self._api.llama_memory_clear(self._memory, False)
        return False

    def reuse(self, prompt: Sequence[int]) -> int:
        """Keeps what the prompt shares with the cache and returns how many tokens that are.

        The prompt's last token is always left to evaluate, because its logits are wanted.
        """
        self.settle()
        count = 0
        for ours, theirs in zip(self.cached, prompt[:-1], strict=False):
            if ours != theirs:
                break
            count += 1
        self.keep(count)
        return count

    def prefill(
        self, tokens: Sequence[int], on_progress: Callable[[int, int], None] | None
    ) -> None:
        """Evaluates a prompt's tokens in batches; the logits of the last one stay.

        Ctrl-C ends it within a batch where the CPU computes, after it elsewhere.

        Args:
            tokens: those not in the cache.
            on_progress: gets (evaluated, all), also once before the first batch.

        Raises:
            DotsError: llama.cpp fails.
            KeyboardInterrupt: from the user.
        """
        total = len(tokens)
        for start in range(0, total, self.n_batch):
            if on_progress is not None:
                on_progress(start, total)
            chunk = tokens[start : start + self.n_batch]
            self._fill(chunk, n_outputs=1 if start + len(chunk) == total else 0)
            self._decode_interruptibly()
        if on_progress is not None:
            on_progress(total, total)

    def evaluate(self, tokens: Sequence[int], before_batch: Callable[[], None]) -> None:
        """Evaluates tokens with an output for each, as no layer leaves any of them out then.

        The context must have been made for so many outputs.

        Raises:
            DotsError: llama.cpp fails.
            KeyboardInterrupt: from the user.
        """
        for start in range(0, len(tokens), self.n_batch):
            before_batch()
            chunk = tokens[start : start + self.n_batch]
            self._fill(chunk, n_outputs=len(chunk))
            self._decode_interruptibly()

    def check_output(self) -> None:
        """Looks at all of the last logits; while decoding one of them has to do.

        Raises:
            DotsError: one of them is not a finite number.
        """
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        values = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * self._n_vocab))[0]
        if not math.isfinite(sum(memoryview(values).cast("B").cast("f"))):
            raise not_numbers()

    def decode_ahead(self, tokens: Sequence[int]) -> None:
        """Evaluates a token and guesses of those behind it, with logits for each.

        Raises:
            DotsError: llama.cpp fails.
            KeyboardInterrupt: from the user.
        """
        self._fill(tokens, n_outputs=len(tokens))
        self._decode_interruptibly()
        for row in range(len(tokens)):
            if not math.isfinite(self._api.llama_get_logits_ith(self._context, row)[0]):
                raise not_numbers()

    def same_bits(self, tokens: Sequence[int]) -> bool:
        """Whether the first two of these tokens get the logits in one batch that they get alone.

        Kernels for one row and for several may add up in another order. The cache is as before.
        """
        n_cached = len(self.cached)
        alone = []
        for token in tokens[:2]:
            self.decode(token)
            alone.append(self._row(-1))
        self.keep(n_cached)
        self.decode_ahead(tokens)
        together = [self._row(row) for row in range(2)]
        self.keep(n_cached)
        return alone == together

    def _row(self, row: int) -> bytes:
        """The logits behind one token of the last batch."""
        pointer = self._api.llama_get_logits_ith(self._context, row)
        return ctypes.string_at(pointer, 4 * self._n_vocab)

    def decode(self, token: int) -> None:
        """Evaluates one token; its logits are there to sample.

        Raises:
            DotsError: llama.cpp fails.
        """
        self._ids[0] = token
        self._outputs[0] = 1
        self._batch.n_tokens = 1
        self.cached.append(token)
        if self._failure is not None:
            self._decode_interruptibly()
        elif status := self._api.llama_decode(self._context, self._batch):
            self._fail(status)
        first = self._api.llama_get_logits_ith(self._context, -1)[0]
        if not math.isfinite(first):  # what isn't in the last layer's output makes all of them so
            raise not_numbers()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after each token of a fresh sequence, float32 of shape (n_tokens, n_vocab)."""
        import numpy as np

        self.settle()
        self.keep(0)
        rows = np.empty((len(tokens), self._n_vocab), dtype=np.float32)
        step = min(self.n_batch, MAX_OUTPUTS)
        for start in range(0, len(tokens), step):
            chunk = tokens[start : start + step]
            self._fill(chunk, n_outputs=len(chunk))
            self._decode_interruptibly()
            values = self._api.llama_get_logits(self._context)
            rows[start : start + len(chunk)] = np.ctypeslib.as_array(
                values, shape=(len(chunk), self._n_vocab)
            )
        return rows

    def _fill(self, tokens: Sequence[int], n_outputs: int) -> None:
        """Puts tokens into the batch, with logits wanted of the last `n_outputs`."""
        count = len(tokens)
        self._ids[:count] = list(tokens)
        ctypes.memset(self._outputs, 0, count)
        ctypes.memset(ctypes.byref(self._outputs, count - n_outputs), 1, n_outputs)
        self._batch.n_tokens = count
        self.cached.extend(tokens)

    def _decode_interruptibly(self) -> None:
        with signals_noted() as interrupted:
            # ggml asks between the nodes of the graph: too often for single tokens, not for many
            asked = self._api.ggml_abort_callback(lambda _data: interrupted())
            self._api.llama_set_abort_callback(self._context, asked, None)
            status = self._api.llama_decode(self._context, self._batch)
            self._api.llama_set_abort_callback(self._context, self._api.ggml_abort_callback(), None)
            if interrupted():
                status = 0 if status == ABORTED else status
        if status:
            self._fail(status)

    def _fail(self, status: int) -> None:
        said = log().complaints()
        self.settle()
        if self._failure is not None and (reason := self._failure()):
            raise DotsError(
                f"experts can't be read any more: {reason}",
                hint="is the file still there, and whole? dots verify FILE.gguf reads all of it",
            )
        raise DotsError(
            f"llama.cpp's llama_decode failed with {status}",
            hint=f"llama.cpp says: {'; '.join(said)}" if said else "run again with -v",
        )
