"""From a checked GGUF to a model and a context of llama.cpp.

Everything that would make llama.cpp abort is refused before; what it still refuses itself comes
back as an error with the last lines of its log. Ctrl-C ends a load between two tensors.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dotscli.engine.context import check_cache, most_context, new_context, refused, token_nbytes
from dotscli.engine.cpu import may_crash_with_amx
from dotscli.engine.devices import has_gpu, registered
from dotscli.engine.hot.choice import HotChoice, choose
from dotscli.engine.interrupt import signals_noted
from dotscli.engine.lib import llama
from dotscli.engine.load_plan import LoadPlan, plan_load
from dotscli.engine.log import log
from dotscli.engine.opened import Opened, open_experts
from dotscli.engine.options import EngineOptions
from dotscli.engine.overrides import override_array
from dotscli.engine.read_ahead import ReadAhead
from dotscli.engine.rpc.client import add_rpc, any_lost
from dotscli.errors import DotsError
from dotscli.models.gguf_file import GgufFile
from dotscli.models.regular_file import check_replaceable

if TYPE_CHECKING:
    from dotscli.engine.collect import Collector
    from dotscli.engine.hot.experts import HotExperts
    from dotscli.engine.hot.tier import MemoryTier

ALL_LAYERS = -1
READ = 0  # LLAMA_LOAD_MODE_NONE: into memory of its own

OnLoad = Callable[[float, float], None]


@dataclass
class Loaded:
    """Addresses in C, what C points to and Python must keep, and why `hot` is off, if known.

    `most_ctx` is the longest context to advise: what the model was trained for and memory allows.
    `token_nbytes`: what a token takes in the cache. `phases`: the seconds that each part of the
    load took, in their order.
    """

    model: Any
    context: Any
    n_ctx: int
    kept: list[Any]
    most_ctx: int = 0
    token_nbytes: int = 0
    hot: HotExperts | None = None
    hot_off: str = ""
    tier: MemoryTier | None = None
    workers: tuple[str, ...] = ()
    phases: dict[str, float] = field(default_factory=dict)

    def free(self) -> None:
        """Gives everything back to llama.cpp; harmless when done twice."""
        if self.tier:
            self.tier.finish()
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
        if self.tier:
            self.tier.close()
        self.model = self.context = None


def load(
    gguf: GgufFile,
    options: EngineOptions,
    on_progress: OnLoad | None,
    warn: Callable[[str], None],
    collector: Collector | None = None,
) -> Loaded:
    """Loads the model of a file that `check_dots1` has passed, and makes its context.

    Args:
        gguf: the header that was checked.
        options: validated on construction.
        on_progress: gets (bytes done, bytes to do) while tensors are read.
        warn: gets a sentence about anything that was not as asked.
        collector: sees what every node of the context's graphs computes.

    Raises:
        DotsError: the model is too large for this machine, or llama.cpp refused it, with its
            reason as the hint.
        KeyboardInterrupt: the user did not want to wait.
    """
    check_cache(gguf, options)
    add_rpc(options.rpc)
    log().clear()
    trace = options.hot.trace if options.hot else None
    options, choice, reason = choose(gguf, options, registered(), warn)
    if trace is not None:
        _check_trace(trace, choice)
    loaded = _loaded(gguf, options, choice, on_progress, warn, collector)
    if choice is not None and loaded.hot:
        try:
            if not loaded.tier:  # what lies on a device need not come from the disk: that pays
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
    on_progress: OnLoad | None,
    warn: Callable[[str], None],
    collector: Collector | None,
) -> Loaded:
    loaded = Loaded(None, None, 0, [], workers=options.rpc)
    loaded.most_ctx = most_context(gguf, options, warn)
    loaded.token_nbytes = token_nbytes(gguf, options)
    plan = plan_load(gguf, options, choice, warn)
    opened = open_experts(gguf, plan, options, choice, warn)
    loaded.hot, loaded.tier = opened.hot, opened.tier
    try:
        with _phase(loaded, "weights_s"):
            loaded.model = _model(gguf, options, plan, opened, on_progress, loaded)
        if loaded.tier:
            loaded.tier.loaded()
        loaded.n_ctx = plan.n_ctx
        with _phase(loaded, "context_s"), signals_noted():  # what is raised while it logs is lost
            loaded.context = new_context(
                gguf.path, loaded.model, plan.n_ctx, plan.n_ubatch, options, collector
            )
        if loaded.tier:
            loaded.tier.start()
        if loaded.hot:
            with _phase(loaded, "hot_experts_s"):
                loaded.hot.fill(on_progress)
        if loaded.tier:
            loaded.tier.warm()
    except BaseException:
        loaded.free()
        raise
    return loaded


@contextmanager
def _phase(loaded: Loaded, name: str) -> Iterator[None]:
    began = perf_counter()
    yield
    loaded.phases[name] = perf_counter() - began


def _model(
    gguf: GgufFile,
    options: EngineOptions,
    plan: LoadPlan,
    opened: Opened,
    on_progress: OnLoad | None,
    loaded: Loaded,
) -> Any:
    api = llama()
    params = api.llama_model_default_params()
    layers = options.n_gpu_layers
    params.n_gpu_layers = (ALL_LAYERS if has_gpu() else 0) if layers is None else layers
    if may_crash_with_amx() or not plan.memory.may_repack:
        params.use_extra_bufts = False
    names = [tensor.name for tensor in gguf.tensors]
    tiered = opened.tier.placements if opened.tier else ()
    overrides = override_array(options, names, tiered, opened.placements)
    if overrides is not None:
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        loaded.kept.append(overrides)
    whole, total = plan.cost.weights_nbytes, plan.dense_nbytes
    failures: list[BaseException] = []
    with ExitStack() as stack:
        ahead = None
        if opened.tier:
            params.load_mode = READ  # mapped weights would compete with experts for memory
            left = opened.tier.tensors
            ahead = stack.enter_context(ReadAhead(gguf, left))
        interrupted = stack.enter_context(signals_noted())

        @api.llama_progress_callback  # type: ignore[untyped-decorator]  # ctypes has no types
        def progress(fraction: float, _data: Any) -> bool:
            done = min(total, int(fraction * whole))
            try:
                if ahead is not None:
                    ahead.reached(done)
                if on_progress is not None:
                    on_progress(done, total)
            except BaseException as error:  # no exception gets through C: raised again below
                failures.append(error)
            return not failures and not interrupted()

        params.progress_callback = progress
        model = api.llama_model_load_from_file(os.fsencode(gguf.path), params)
        if opened.cache:
            opened.cache.loaded()
    if failures:
        api.llama_model_free(model)
        raise failures[0]
    if not model:
        raise refused(f"{gguf.path}: llama.cpp can't load this file")
    return model
