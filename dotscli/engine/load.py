"""From a checked GGUF to a model and a context of llama.cpp.

Everything that would make llama.cpp abort is refused before; what it still refuses itself comes
back as an error with the last lines of its log. Ctrl-C ends a load between two tensors.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dotscli.engine.cpu import may_crash_with_amx
from dotscli.engine.devices import has_gpu, registered
from dotscli.engine.hot.choice import HotChoice, choose
from dotscli.engine.interrupt import signals_noted
from dotscli.engine.lib import llama
from dotscli.engine.log import log
from dotscli.engine.memory import (
    bytes_per_token,
    cache_room,
    check_cache_fits,
    context_size,
    missing_memory,
    most_memory,
)
from dotscli.engine.options import CACHE_TYPES, FLASH_ATTN, MAX_OUTPUTS, MAX_UBATCH, EngineOptions
from dotscli.engine.overrides import override_array
from dotscli.engine.rpc.client import add_rpc, any_lost
from dotscli.errors import DotsError
from dotscli.models.check import sizes_of
from dotscli.models.gguf_file import GgufFile
from dotscli.models.regular_file import check_replaceable
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.engine.collect import Collector
    from dotscli.engine.hot.experts import HotExperts

ALL_LAYERS = -1


@dataclass
class Loaded:
    """Addresses in C, what C points to and Python must keep, and why `hot` is off, if known.

    `most_ctx` is the longest context to advise: what the model was trained for and memory allows.
    """

    model: Any
    context: Any
    n_ctx: int
    kept: list[Any]
    most_ctx: int = 0
    hot: HotExperts | None = None
    hot_off: str = ""
    may_repack: bool = True
    workers: tuple[str, ...] = ()

    def free(self) -> None:
        """Gives everything back to llama.cpp; harmless when done twice."""
        if self.hot and self.context:
            self.hot.finish()
        if any_lost(self.workers):
            return  # llama.cpp would end the process for not being able to free what is there
        if self.context:
            llama().llama_free(self.context)
        if self.model:
            llama().llama_model_free(self.model)
        if self.hot:
            self.hot.close()
        self.model = self.context = None


def load(
    gguf: GgufFile,
    options: EngineOptions,
    on_progress: Callable[[float], None] | None,
    warn: Callable[[str], None],
    collector: Collector | None = None,
) -> Loaded:
    """Loads the model of a file that `check_dots1` has passed, and makes its context.

    Args:
        gguf: the header that was checked.
        options: validated on construction.
        on_progress: gets 0.0 to 1.0 while tensors are read.
        warn: gets a sentence about anything that was not as asked.
        collector: sees what every node of the context's graphs computes.

    Raises:
        DotsError: llama.cpp refused, with its reason as the hint.
        KeyboardInterrupt: the user did not want to wait.
    """
    _check_cache(gguf, options)
    add_rpc(options.rpc)
    log().clear()
    trace = options.hot.trace if options.hot else None
    options, choice, reason = choose(gguf, options, registered(), warn)
    if trace is not None:
        _check_trace(trace, choice)
    loaded = _loaded(gguf, options, choice, on_progress, warn, collector)
    if choice is not None and loaded.hot:
        try:
            reason = loaded.hot.refusal(loaded.context, _n_vocab(loaded.model))
            if not reason:
                loaded.hot.start()
        except BaseException:
            loaded.free()
            raise
        if reason:
            loaded.free()
            loaded = _loaded(gguf, choice.stock, None, on_progress, warn, collector)
    loaded.hot_off = reason
    return loaded


def _check_trace(path: Path, choice: HotChoice | None) -> None:
    if choice is None:
        raise DotsError(
            "--heat-trace works only with hot experts",
            hint="on any machine: --hot 1M --hot-device CPU",
        )
    check_replaceable(path, hint="name a file with --heat-trace")
    if path.exists():
        raise DotsError(f"{path} already exists", hint="name another file for the trace")


def _n_vocab(model: Any) -> int:
    return int(llama().llama_vocab_n_tokens(llama().llama_model_get_vocab(model)))


def _loaded(
    gguf: GgufFile,
    options: EngineOptions,
    choice: HotChoice | None,
    on_progress: Callable[[float], None] | None,
    warn: Callable[[str], None],
    collector: Collector | None,
) -> Loaded:
    loaded = Loaded(None, None, 0, [], workers=options.rpc)
    if missing := missing_memory(gguf, options):
        # llama.cpp would copy the weights into a layout for this CPU, and end there.
        loaded.may_repack = False
        warn(
            f"{gguf.path.name} needs {format_bytes(missing)} more memory than is free: the rest is "
            "read from the disk again and again, which is slow"
        )
    if choice is not None:
        loaded.hot = _hot(choice, warn)
    first, second = _halves(on_progress) if loaded.hot else (on_progress, None)
    try:
        loaded.model = _model(gguf, options, first, loaded)
        loaded.n_ctx, loaded.most_ctx = _n_ctx(gguf, options, warn)
        with signals_noted():  # what is raised while llama.cpp logs would be lost
            loaded.context = _context(gguf.path, loaded.model, loaded.n_ctx, options, collector)
        if loaded.hot:
            loaded.hot.fill(second)
    except BaseException:
        loaded.free()
        raise
    return loaded


def _hot(choice: HotChoice, warn: Callable[[str], None]) -> HotExperts | None:
    from dotscli.engine.hot.experts import HotExperts  # with numpy, which stock needs not wait for

    try:
        return HotExperts(choice, warn)
    except DotsError as error:
        warn(f"hot experts are off: {error.message}")
        return None


def _halves(
    on_progress: Callable[[float], None] | None,
) -> tuple[Callable[[float], None] | None, Callable[[float], None] | None]:
    """Progress of the weights, then of the hot experts' copies."""
    if on_progress is None:
        return None, None
    return lambda done: on_progress(done / 2), lambda done: on_progress((1 + done) / 2)


def _model(
    gguf: GgufFile,
    options: EngineOptions,
    on_progress: Callable[[float], None] | None,
    loaded: Loaded,
) -> Any:
    api = llama()
    params = api.llama_model_default_params()
    layers = options.n_gpu_layers
    params.n_gpu_layers = (ALL_LAYERS if has_gpu() else 0) if layers is None else layers
    if may_crash_with_amx() or not loaded.may_repack:
        params.use_extra_bufts = False
    last = loaded.hot.placements if loaded.hot else ()
    overrides = override_array(options, (tensor.name for tensor in gguf.tensors), last)
    if overrides is not None:
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        loaded.kept.append(overrides)
    failures: list[BaseException] = []
    with signals_noted() as interrupted:

        @api.llama_progress_callback  # type: ignore[untyped-decorator]  # ctypes has no types
        def progress(fraction: float, _data: Any) -> bool:
            try:
                if on_progress is not None:
                    on_progress(fraction)
            except BaseException as error:  # no exception gets through C: raised again below
                failures.append(error)
            return not failures and not interrupted()

        params.progress_callback = progress
        model = api.llama_model_load_from_file(os.fsencode(gguf.path), params)
    if loaded.hot:
        loaded.hot.loaded()
    if failures:
        api.llama_model_free(model)
        raise failures[0]
    if not model:
        raise _refused(f"{gguf.path}: llama.cpp can't load this file")
    return model


def _n_ctx(gguf: GgufFile, options: EngineOptions, warn: Callable[[str], None]) -> tuple[int, int]:
    """The context to make, and the longest one to advise."""
    trained = _number(gguf.metadata, "context_length")
    sizes = sizes_of(gguf)
    cost = bytes_per_token(sizes.n_layers, sizes.n_heads * sizes.head_dim, options)
    memory = most_memory()
    most = min(trained, memory // max(1, cost))
    if options.n_ctx:
        if options.n_ctx > trained:
            warn(f"a context of {options.n_ctx} is longer than the {trained} of the training")
        check_cache_fits(options.n_ctx, cost, memory)
        return options.n_ctx, most
    return context_size(trained, cost, cache_room(gguf, options)), most


def _check_cache(gguf: GgufFile, options: EngineOptions) -> None:
    """A quantized cache works in blocks within a head; llama.cpp aborts if they do not fit."""
    head_dim = sizes_of(gguf).head_dim
    for flag, kind in (("k", options.cache_type_k), ("v", options.cache_type_v)):
        block = CACHE_TYPES[kind].block
        if head_dim % block:
            raise DotsError(
                f"--cache-type-{flag} {kind} needs a head width that is a multiple of {block}, "
                f"{gguf.path} has {head_dim}",
                hint=f"use --cache-type-{flag} f16",
            )


def _context(
    path: Path, model: Any, n_ctx: int, options: EngineOptions, collector: Collector | None
) -> Any:
    api = llama()
    params = api.llama_context_default_params()
    params.n_ctx = -(-n_ctx // 256) * 256  # as llama.cpp rounds, or its batch gets smaller
    params.n_batch = min(options.n_batch, params.n_ctx)
    params.n_ubatch = min(MAX_UBATCH, params.n_batch)
    params.n_outputs_max = min(MAX_OUTPUTS, params.n_batch)
    if collector is not None:
        params.cb_eval = collector.callback
        params.n_outputs_max = params.n_batch  # the last layer computes only what is put out
    params.n_threads, params.n_threads_batch = options.threads()
    params.type_k = CACHE_TYPES[options.cache_type_k].id
    params.type_v = CACHE_TYPES[options.cache_type_v].id
    params.flash_attn_type = FLASH_ATTN[options.flash_attn]
    context = api.llama_init_from_model(model, params)
    if not context:
        raise _refused(
            f"{path}: llama.cpp can't create a context of {n_ctx} tokens with cache types "
            f"{options.cache_type_k} and {options.cache_type_v}"
        )
    return context


def _number(metadata: Mapping[str, object], key: str) -> int:
    value = metadata[f"dots1.{key}"]
    assert isinstance(value, int)  # check_dots1 has seen to it
    return value


def _refused(message: str) -> DotsError:
    said = log().complaints()
    return DotsError(
        message, hint=f"llama.cpp says: {'; '.join(said)}" if said else "run again with -v"
    )
