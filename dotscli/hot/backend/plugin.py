"""The door to the hot-expert backend, a shared library that runs under the installed llama.cpp.

The library registers a device with the ggml that libllama has loaded. A model is opened with
`HotBackend.open`, loaded with its overrides in `llama_model_params`, and from then on its routed
experts can be made resident on a device, layer by layer and slot by slot, also while tokens are
computed. This module knows nothing of llama_cpp (it finds its folder without importing it), of what
is worth being resident (placement.py), or of what the counts mean (heat.py).
"""

from __future__ import annotations

import ctypes
import enum
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType

import numpy as np

from dotscli.errors import DotsError
from dotscli.hot.backend import library
from dotscli.hot.expert_cache import ExpertBytes, HotCounters, HotLayer, RamCounters, Trial

EXPERTS_PATTERN = rb"ffn_(up|gate|down)_exps"
HALF_LIFE = 256.0  # tokens, after which a token counts half for who stays in main memory
PATIENCE_S = 30.0  # for room in the memory of experts


class Streaming(enum.IntEnum):
    """When experts that aren't resident go through the device in batches of more than 8 tokens."""

    NEVER, WHERE_IT_PAYS, ALWAYS = range(3)


class HotModel:
    """One loaded model's residency and counts. Close it when the model itself is freed."""

    def __init__(self, loaded: ctypes.CDLL, number: int, buffer_type: int) -> None:
        self._library = loaded
        self._number = number
        self.overrides = (library.BufferTypeOverride * 2)(
            library.BufferTypeOverride(EXPERTS_PATTERN, buffer_type),
            library.BufferTypeOverride(None, None),
        )

    def __enter__(self) -> HotModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def placements(self) -> list[tuple[str, int]]:
        """The overrides as pattern and address of the buffer type."""
        entries = [entry for entry in self.overrides if entry.pattern is not None]
        return [(entry.pattern.decode(), entry.buft) for entry in entries]

    def loaded(self) -> None:
        """Ends the load: what llama.cpp allocates from here on is not this model's."""
        self._library.dots_hot_loaded(self._number)

    def close(self) -> None:
        self._library.dots_hot_close(self._number)

    def read_from(self, files: Sequence[Path], parts: Sequence[ExpertBytes]) -> None:
        """As ExpertCache has it."""
        names = (ctypes.c_char_p * len(files))(*(os.fsencode(file) for file in files))
        problem = self._library.dots_hot_tier(
            self._number, names, len(files), HALF_LIFE, PATIENCE_S
        )
        for p in parts:
            problem = problem or self._library.dots_hot_tier_part(
                self._number, p.layer, p.part, p.file, p.offset, p.expert_nbytes, p.n_experts
            )
        if problem:
            raise DotsError(f"experts can't be read when they are needed: {problem.decode()}")

    def n_tiered(self) -> int:
        """As ExpertCache has it."""
        return sum(bool(layer.tiered) for layer in self._found_layers())

    def set_ram(self, nbytes: int) -> None:
        """As ExpertCache has it."""
        self._library.dots_hot_set_ram(self._number, nbytes)

    def warm(self, heat: Mapping[int, Sequence[float]], order: Sequence[tuple[int, int]]) -> None:
        """As ExpertCache has it."""
        for layer, tokens in heat.items():
            values = np.ascontiguousarray(tokens, np.float64)
            self._library.dots_hot_set_heat(self._number, layer, _pointer(values), len(values))
        pairs = np.ascontiguousarray(order, np.int32).reshape(-1, 2)
        self._library.dots_hot_warm(self._number, _pointer(pairs), len(pairs))

    def ram(self) -> RamCounters:
        """As ExpertCache has it."""
        found = library.Ram()
        self._library.dots_hot_read_ram(self._number, ctypes.byref(found))
        values = {field.name: getattr(found, field.name) for field in fields(RamCounters)}
        return RamCounters(**(values | {"direct": bool(found.direct)}))

    def failure(self) -> str:
        """As ExpertCache has it."""
        text = self._library.dots_hot_failure(self._number)
        return text.decode(errors="replace") if text else ""

    def _found_layers(self) -> ctypes.Array[library.Layer]:
        n_layers = self._library.dots_hot_layers(self._number, None, 0)
        found: ctypes.Array[library.Layer] = (library.Layer * n_layers)()
        self._library.dots_hot_layers(self._number, found, n_layers)
        return found

    def layers(self) -> tuple[HotLayer, ...]:
        """The MoE layers whose experts the backend holds, in order."""
        return tuple(
            HotLayer(
                layer=f.layer,
                n_experts=f.n_experts,
                n_slots=f.n_slots,
                n_resident=f.n_resident,
                expert_nbytes=f.expert_nbytes,
                off=bool(f.off),
            )
            for f in self._found_layers()
        )

    def reserve(self, layer: int, n_slots: int) -> None:
        """Make room for `n_slots` experts of a layer on the device; what lay there is forgotten.

        Raises:
            DotsError: if the device has no memory for them or can't compute with their types. The
                layer then stays on the CPU and everything else goes on.
        """
        self._check(self._library.dots_hot_reserve(self._number, layer, n_slots), layer)

    def place(self, layer: int, slot: int, expert: int) -> None:
        """Copy an expert into a slot of its layer, in place of the one there; -1 empties the slot.

        May be called from any thread while tokens are computed. Until the copy is complete, both
        the old and the new expert are computed on the CPU.

        Raises:
            DotsError: if layer, slot or expert don't exist, or if the expert has another slot.
        """
        self._check(self._library.dots_hot_place(self._number, layer, slot, expert), layer)

    def residents(self, layer: int) -> tuple[int, ...]:
        """The expert in each slot of a layer, -1 for an empty slot."""
        n_slots = self._library.dots_hot_residents(self._number, layer, None, 0)
        found = (ctypes.c_int32 * n_slots)()
        self._library.dots_hot_residents(self._number, layer, found, n_slots)
        return tuple(found)

    def set_residents(self, layer: int, experts: Sequence[int]) -> None:
        """Exchange as few slots as it takes to have exactly these experts resident."""
        now, wanted = self.residents(layer), set(experts)
        if len(wanted) > len(now):
            raise DotsError(f"layer {layer} has {len(now)} slots, not {len(wanted)}")
        missing = sorted(wanted - set(now))
        for slot, expert in enumerate(now):
            if expert not in wanted:
                self.place(layer, slot, missing.pop() if missing else -1)

    def set_trial(self, trial: Trial) -> None:
        """Compute from here on as a comparison needs it; `Trial.NONE` is as ever."""
        self._library.dots_hot_set_trial(self._number, trial)

    def set_streaming(self, streaming: Streaming) -> None:
        """`Streaming.WHERE_IT_PAYS` at first."""
        self._library.dots_hot_set_streaming(self._number, streaming)

    def has_residents(self) -> bool:
        """Whether any expert is on the device."""
        return any(layer.n_resident for layer in self.layers())

    def counters(self) -> HotCounters:
        found = library.Counters()
        self._library.dots_hot_read_counters(self._number, ctypes.byref(found))
        return HotCounters(
            **{field.name: getattr(found, field.name) for field in fields(HotCounters)}
        )

    def heat(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Layer -> tokens routed to each expert, (decoding, prompts), both uint64 [n_experts]."""
        counts = {}
        for layer in self.layers():
            decode, prefill = (np.zeros(layer.n_experts, np.uint64) for _ in range(2))
            self._library.dots_hot_read_heat(
                self._number, layer.layer, _pointer(decode), _pointer(prefill), layer.n_experts
            )
            counts[layer.layer] = (decode, prefill)
        return counts

    def trace(self, path: Path | None) -> None:
        """Write the routed ids of every batch to a file (heat.read_trace); None ends the trace.

        Raises:
            DotsError: if the file can't be written.
        """
        problem = self._library.dots_hot_trace(self._number, os.fsencode(path) if path else None)
        if problem:
            raise DotsError(f"can't write the trace {path or ''}: {problem.decode()}")

    def messages(self) -> tuple[str, ...]:
        """What was switched off and why, each sentence once in the life of the model."""
        text = self._library.dots_hot_messages(self._number)
        return tuple(text.decode().splitlines()) if text else ()

    def _check(self, problem: bytes | None, layer: int) -> None:
        if problem:
            raise DotsError(f"hot experts, layer {layer}: {problem.decode()}")


class HotBackend:
    """The registered backend. There is one per process: use `backend()`."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._library = loaded

    def set_threadpool(self, threadpool: int | None) -> None:
        """Let contexts made from here on compute with a ggml_threadpool (its address).

        Give it to llama_attach_threadpool too, and free it after the contexts. It needs as many
        threads as any of them uses. Worth having where ggml was built without OpenMP, whose threads
        are shared anyway.
        """
        self._library.dots_hot_set_threadpool(threadpool)

    def open(self, device: str | None) -> HotModel:
        """Begin to load a model whose hot experts will live on `device` (a ggml device name).

        Call `loaded` on the result when llama.cpp has loaded the file, also when it failed. Without
        a device the model computes as ever and only counts heat.

        Raises:
            DotsError: if there is no such device, or another model is being loaded.
        """
        problem = ctypes.c_char_p()
        number = self._library.dots_hot_open(
            device.encode() if device is not None else None, ctypes.byref(problem)
        )
        if number == 0:
            reason = (problem.value or b"").decode()
            raise DotsError(f"hot experts: {reason}", hint="dots doctor lists the devices")
        return HotModel(self._library, number, self._library.dots_hot_buffer_type())


def _pointer(counts: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(counts.ctypes.data)


def unavailable() -> str:
    """Why hot experts can't be used here, in one line; empty if they can."""
    return library.start()[1]


def backend() -> HotBackend:
    """The backend, registered with llama.cpp at the first call.

    Raises:
        DotsError: with the reason, if this installation can't have it.
    """
    found, reason = library.start()
    if found is None:
        raise DotsError(f"no hot experts: {reason}", hint="dots doctor shows what is installed")
    return HotBackend(found)
