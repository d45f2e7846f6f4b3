"""A loaded model: text to tokens, tokens to text, and answers piece by piece.

One sequence, one cache. Between answers the cache is kept, and a prompt that begins like what is
in it is evaluated from the first difference on. The list of cached tokens is written before
llama.cpp evaluates them and cut back to what llama.cpp holds before it is used again, so an
interrupt at any moment leaves nothing to repair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from dotscli.engine.abort import waiting_for
from dotscli.engine.cpu import caveats
from dotscli.engine.decode import Decoder
from dotscli.engine.draft import Drafting
from dotscli.engine.generate import Answer, Limits
from dotscli.engine.grammar import let_go as let_grammars_go
from dotscli.engine.lib import llama
from dotscli.engine.load import Loaded, load
from dotscli.engine.log import log
from dotscli.engine.options import EngineOptions
from dotscli.engine.sampler import Sampler
from dotscli.engine.sampling import Sampling, check_n_predict
from dotscli.engine.stream import Piece, Stats, TextStream
from dotscli.engine.vocab import Vocabulary
from dotscli.errors import DotsError
from dotscli.models.check import check_dots1
from dotscli.models.check_values import check_vectors
from dotscli.models.gguf_file import read_gguf
from dotscli.models.template_process import expect as expect_template
from dotscli.models.template_process import let_go as let_template_go

if TYPE_CHECKING:
    import numpy as np

    from dotscli.engine.collect import Collector, Input
    from dotscli.engine.states import KeptStates


class Engine:
    """A dots1 GGUF ready to answer. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        path: Path,
        loaded: Loaded,
        metadata: Mapping[str, str],
        load_s: float,
        cache_types: Sequence[str],
    ) -> None:
        """Used by `load` only."""
        api = llama()
        self.path = path
        self.metadata = metadata
        self.load_s = load_s
        self.n_ctx: int = loaded.n_ctx
        self.most_ctx: int = loaded.most_ctx
        self.token_nbytes: int = loaded.token_nbytes  # in the cache
        self.n_ctx_train = int(api.llama_model_n_ctx_train(loaded.model))
        self.vocabulary = Vocabulary(api.llama_model_get_vocab(loaded.model))
        self.n_vocab = self.vocabulary.n_tokens
        template = api.llama_model_chat_template(loaded.model, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None
        self.eos_token, self.bos_token = self.vocabulary.named(metadata)
        self.hot = loaded.hot
        self.hot_off = loaded.hot_off
        self._loaded = loaded
        self._cache_types = cache_types
        self.phases = loaded.phases
        self.tier = loaded.tier
        self._decoder = Decoder(
            loaded.context, self.n_vocab, self.tier.failure if self.tier else None
        )
        self.states: KeptStates | None = None
        self.drafting = Drafting(self._decoder, from_disk=self.tier is not None)
        self._answer: Answer | None = None
        self._pieces: Generator[Piece, None, None] | None = None

    @classmethod
    def load(
        cls,
        path: Path,
        options: EngineOptions,
        on_progress: Callable[[float, float], None] | None = None,
        on_log: Callable[[str], None] | None = None,
        collector: Collector | None = None,
    ) -> Engine:
        """Checks and loads a GGUF, or the first shard of a split one.

        Args:
            path: the file.
            options: validated on construction.
            on_progress: gets (bytes done, bytes to do) while the weights are read.
            on_log: gets warnings, and with `options.verbose` every line that llama.cpp logs.
            collector: for `collect`; everything else becomes slower with one.

        Raises:
            DotsError: the file is damaged or is not dots1, or llama.cpp refuses it.
            KeyboardInterrupt: Ctrl-C during the load.
        """
        started = time.perf_counter()
        gguf = read_gguf(path)
        check_dots1(gguf)
        check_vectors(gguf)
        log().listener = on_log if options.verbose else None
        if on_log is not None and options.verbose:
            for caveat in caveats():
                on_log(caveat)
        template = gguf.metadata.get("tokenizer.chat_template")
        if collector is None and isinstance(template, str):
            expect_template(template)
        with waiting_for(options.rpc):
            loaded = load(gguf, options, on_progress, on_log or (lambda _line: None), collector)
        metadata = {
            key: str(value)
            for key, value in gguf.metadata.items()
            if isinstance(value, str | int | float | bool)
        }
        kinds = (options.cache_type_k, options.cache_type_v, options.flash_attn)
        return cls(path, loaded, metadata, time.perf_counter() - started, kinds)

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of a text in NFC; with `parse_special` names of control tokens are tokens."""
        self._check_open()
        return self.vocabulary.tokenize(text, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """Bytes of tokens; control tokens leave nothing unless `special` asks for their names."""
        self._check_open()
        self.vocabulary.check(tokens)
        return b"".join(self.vocabulary.piece(token, special=special) for token in tokens)

    def generate(
        self,
        tokens: Sequence[int],
        sampling: Sampling,
        *,
        n_predict: int = -1,
        stop: Sequence[str] = (),
        on_prefill: Callable[[int, int], None] | None = None,
        draft: int | None = 0,
        repeatable: bool = True,
    ) -> Iterator[Piece]:
        """Continues a prompt; the last piece has the reason for the end and the figures.

        Closing the iterator ends the answer, and so does the next call. A KeyboardInterrupt goes
        through it; either way the next call takes up what is in the cache.

        Args:
            tokens: the whole prompt, at least one token and fewer than `n_ctx`.
            sampling: a seed of -1 is drawn here and then not known outside.
            n_predict: most tokens to sample, -1 for as many as the context holds.
            stop: strings that end the answer.
            on_prefill: gets (evaluated, to evaluate) while the prompt is read.
            draft: tokens to guess ahead, 0 for none, None for as many as pay.
            repeatable: whether the same call has to give the same answer (temperature 0, a seed).

        Raises:
            DotsError: an impossible prompt, grammar or stop string, before anything is evaluated.
        """
        prompt = list(tokens)
        self._check_prompt(prompt)
        check_n_predict(n_predict)
        limits = Limits(self.n_ctx, n_predict)
        text = TextStream(stop)
        vocabulary = self.vocabulary
        sampler = Sampler(
            self._decoder.context,
            vocabulary.handle,
            sampling.with_seed(),
            lambda: vocabulary.markup,
            self.path,
        )
        self._end_answer()
        if self.states is not None:
            self.states.recall(prompt)
        self._answer = Answer(
            self._decoder, vocabulary, sampler, prompt, limits, text, self.hot, self.tier,
            lambda: self.drafting.begin(draft, repeatable=repeatable),
        )  # fmt: skip
        self._pieces = self._waited_for(self._answer.pieces(on_prefill))
        return self._pieces

    def keep_states(self, folder: Path, warn: Callable[[str], None]) -> None:
        """From here on, what the cache holds is looked for in a folder, and kept by `keep_state`.

        Args:
            folder: shared with other models and processes; need not exist.
            warn: gets what goes wrong; answers go on without.
        """
        from dotscli.engine.states import open_states

        if not self._loaded.workers:  # a worker's part would have to come through the network
            self.states = open_states(self.path, self._cache_types, self._decoder, folder, warn)

    def keep_state(self) -> bool:
        """Keep what the cache holds after an answer, if that pays; whether it is being written."""
        self._end_answer()
        return self.states is not None and self.states.keep(self.stats)

    @property
    def stats(self) -> Stats:
        """Figures of the last answer, also of one that was broken off."""
        return self._answer.stats if self._answer else Stats()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after each of the tokens, evaluated from an empty cache: float32 (n, n_vocab)."""
        self._end_answer()
        self._check_prompt(list(tokens))
        with waiting_for(self._loaded.workers):
            return self._decoder.logits(tokens)

    def collect(self, tokens: Sequence[int], collector: Collector) -> list[Input]:
        """Evaluates tokens from an empty cache and says what went into every weight matrix.

        Args:
            tokens: at most `n_ctx`.
            collector: the one that the model was loaded with.

        Raises:
            DotsError: a token outside the vocabulary, llama.cpp fails, or the model computes
                something that is not finite.
            KeyboardInterrupt: from the user; what was collected is forgotten.
        """
        self.forget()
        self.vocabulary.check(tokens)
        collector.forget()
        with waiting_for(self._loaded.workers):
            self._decoder.evaluate(tokens, collector.begin)
        return collector.take()

    def forget(self) -> None:
        """Empties the cache: the next prompt is evaluated from its first token."""
        self._check_open()
        self._end_answer()
        self._decoder.keep(0)

    def close(self) -> None:
        """Frees model and context; harmless when done twice."""
        self._end_answer()
        if self.states is not None:
            self.states.close()
        let_grammars_go()
        let_template_go()
        log().listener = None
        with waiting_for(self._loaded.workers):
            self._loaded.free()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _end_answer(self) -> None:
        """Ends an answer that is still open: it must not go on in another one's cache."""
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None

    def _waited_for(self, pieces: Generator[Piece, None, None]) -> Generator[Piece, None, None]:
        with waiting_for(self._loaded.workers):
            yield from pieces

    def _check_open(self) -> None:
        if not self._loaded.context:
            raise DotsError(f"{self.path}: the model was closed")

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        self._check_open()
        if not tokens:
            raise DotsError("the prompt is empty", hint="give at least one character")
        self.vocabulary.check(tokens)
        if len(tokens) >= self.n_ctx:
            more = self.longer_context(len(tokens))
            raise DotsError(
                f"the prompt has {len(tokens)} tokens, but the context holds {self.n_ctx}, "
                "including the answer",
                hint=f"raise it with: --ctx-size {more}"
                if more
                else f"give a shorter text: the limit here is {self.most_ctx} tokens",
            )

    def longer_context(self, n_tokens: int) -> int:
        """A context that holds so many tokens and an answer; 0 where none is to be advised.

        It is never longer than the model was trained for or memory allows.
        """
        wanted = min((n_tokens // 1024 + 2) * 1024, self.most_ctx)
        return wanted if wanted > max(n_tokens, self.n_ctx) else 0
