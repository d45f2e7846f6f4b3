"""Keeps the state of a context between processes, where reading tokens again would cost more.

Before a prompt is evaluated the longest kept beginning of it is put into the context; after an
answer the state is copied on the decoding thread, and written on another. What reading costs is
measured as prompts are read, what writing costs as states are written.
"""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dotscli.engine.decode import Decoder
from dotscli.engine.state_file import NewState, checked_state
from dotscli.engine.state_store import StateStore, common
from dotscli.engine.stream import Stats
from dotscli.errors import DotsError
from dotscli.models.identity import fingerprint

RATE = 5e8  # bytes per second that a disk writes and reads at least, before it is measured
OVERHEAD_S = 0.02  # of keeping or finding a state, whatever its size
MIN_TOKENS = 16  # of a prompt that says how fast tokens are read


class KeptStates:
    """The states of one engine. `close` before its context goes.

    Args:
        decoder: whose context it is.
        store: where they are kept.
        warn: gets what goes wrong; the answer goes on without.
    """

    def __init__(self, decoder: Decoder, store: StateStore, warn: Callable[[str], None]) -> None:
        self._decoder = decoder
        self._store = store
        self._warn = warn
        self._token_s = 0.0
        self._rate = RATE
        self._kept: Sequence[int] = ()
        self._writing: threading.Thread | None = None

    def recall(self, prompt: Sequence[int]) -> int:
        """Put the longest kept beginning of a prompt into the context, if that saves time.

        Returns how many tokens came from a file.
        """
        decoder = self._decoder
        decoder.settle()
        have = common(decoder.cached, prompt[:-1])
        info, length = self._store.best(prompt[:-1])
        if info is None or length <= have:
            return 0
        saved = (length - have) * info.prefill_s / len(info.tokens)
        if saved <= info.nbytes / self._rate + OVERHEAD_S:
            return 0
        self._kept = info.tokens
        self._token_s = self._token_s or info.prefill_s / len(info.tokens)
        try:
            with checked_state(info) as state:
                if not decoder.restore(state, info.tokens):
                    raise DotsError(f"{info.path} is no state of this context")
        except DotsError as error:
            self._store.damaged(info.path, error.message)
            return 0
        self._store.used(info)
        return length

    def keep(self, stats: Stats) -> bool:
        """Keep what the context holds after an answer, if reading it again would cost more.

        Returns whether it is being written.
        """
        evaluated = stats.prompt_tokens - stats.reused_tokens
        if evaluated >= MIN_TOKENS and stats.prefill_s > 0:
            self._token_s = stats.prefill_s / evaluated
        decoder = self._decoder
        decoder.settle()
        tokens = list(decoder.cached)
        if not tokens:
            return False
        nbytes = decoder.state_nbytes()
        again = (len(tokens) - common(self._kept, tokens)) * self._token_s
        if again <= nbytes / self._rate + OVERHEAD_S:
            return False
        self._wait()
        try:
            if not self._store.make_room(nbytes):
                return False
            seconds = len(tokens) * self._token_s
            path = self._store.path(tokens)
            new = NewState(path, self._store.identity, tokens, nbytes, seconds)
            new.fill(decoder.save)
        except (DotsError, OSError) as error:
            self._warn(error.message if isinstance(error, DotsError) else str(error))
            return False
        self._kept = tokens
        self._writing = threading.Thread(
            target=self._finish, args=(new, nbytes), name="state", daemon=True
        )
        self._writing.start()
        return True

    @property
    def writing(self) -> bool:
        """Whether a state is on its way to the disk."""
        return self._writing is not None and self._writing.is_alive()

    def close(self) -> None:
        """Wait until what is being written is on the disk."""
        self._wait()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _finish(self, new: NewState, nbytes: int) -> None:
        began = time.perf_counter()
        try:
            new.finish()
            self._store.succeed(new.path, self._kept)
        except (DotsError, OSError) as error:
            self._kept = ()
            self._warn(error.message if isinstance(error, DotsError) else str(error))
            return
        self._rate = max(1.0, nbytes / max(1e-3, time.perf_counter() - began))


def open_states(
    path: Path,
    cache_types: Sequence[str],
    decoder: Decoder,
    folder: Path,
    warn: Callable[[str], None],
) -> KeptStates:
    """The states in a folder that fit a context.

    Args:
        path: of its model.
        cache_types: of keys and values, and how attention is computed.
    """
    version = importlib.metadata.version("llama-cpp-python")
    identity = " ".join((fingerprint(path), *cache_types, version))
    return KeptStates(decoder, StateStore(folder, identity, warn), warn)
