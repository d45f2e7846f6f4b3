"""Where libdots_hot and libllama lie, and how libdots_hot is called.

Mirrors dotscli/native/hot/dots_hot.h line by line. It knows nothing of what the calls mean.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
from contextlib import suppress
from pathlib import Path

DEVICE_NAME = "Hot"  # in ggml's registry, once the library is started; it is nobody's to choose

_LIBRARY_NAMES = ("libdots_hot.so", "libdots_hot.dylib", "libdots_hot.dll")
_LLAMA_NAMES = ("libllama.so", "libllama.dylib", "llama.dll")


class Layer(ctypes.Structure):
    _fields_ = (
        ("layer", ctypes.c_int32),
        ("n_experts", ctypes.c_int32),
        ("n_slots", ctypes.c_int32),
        ("n_resident", ctypes.c_int32),
        ("expert_nbytes", ctypes.c_uint64),
        ("off", ctypes.c_int32),
        ("tiered", ctypes.c_int32),
    )


class Counters(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "decode_hits",
            "decode_misses",
            "prefill_hits",
            "prefill_misses",
            "uploads",
            "uploaded_nbytes",
            "streamed_experts",
            "streamed_nbytes",
            "direct_nbytes",
            "spared_layers",
            "cpu_ns",
            "device_ns",
            "wait_ns",
        )
    )


class Ram(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "decode_hits",
            "decode_misses",
            "prefill_hits",
            "prefill_misses",
            "read_experts",
            "reread_experts",
            "read_nbytes",
            "ahead_nbytes",
            "wait_ns",
            "resident_nbytes",
            "resident_experts",
            "direct",
        )
    )


class BufferTypeOverride(ctypes.Structure):
    """One entry of llama_model_params.tensor_buft_overrides; an entry without pattern ends them."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def library_path() -> Path | None:
    """The installed shared library, or None where dots was installed without native code."""
    folders = [Path(__file__).parents[2] / "lib"]
    with suppress(importlib.metadata.PackageNotFoundError):
        installed = importlib.metadata.distribution("dotscli").locate_file("dotscli/lib")
        folders.insert(0, Path(str(installed)))
    paths = (folder / name for folder in folders for name in _LIBRARY_NAMES)
    return next((path for path in paths if path.is_file()), None)


def llama_path() -> Path | None:
    """libllama as llama_cpp loads it: a handle to this very file leads to the right ggml.

    The folder holds full copies of every library under several names, and a copy that libllama
    itself was not linked with has a registry of its own.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    paths = (Path(spec.origin).parent / "lib" / name for name in _LLAMA_NAMES)
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def start() -> tuple[ctypes.CDLL | None, str]:
    """The library, registered with llama.cpp once per process; or None and why not, in one line."""
    ours, llama = library_path(), llama_path()
    if ours is None:
        return None, "dots was installed without its native libraries"
    if llama is None:
        return None, "libllama is not where llama-cpp-python should have it"
    try:
        library, libllama = ctypes.CDLL(str(ours)), ctypes.CDLL(str(llama))
    except OSError as error:
        return None, str(error)
    try:
        _declare(library)
    except AttributeError:  # it lacks a function: an installation in place, whose sources went on
        return None, f"{ours} belongs to another version of dots; reinstall dots"
    problem = library.dots_hot_start(ctypes.c_void_p(libllama._handle))
    return (None, problem.decode()) if problem else (library, "")


def _declare(library: ctypes.CDLL) -> None:
    number, text, pointer = ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "dots_hot_start": (text, [pointer]),
        "dots_hot_buffer_type": (pointer, []),
        "dots_hot_set_threadpool": (None, [pointer]),
        "dots_hot_open": (number, [text, pointer]),
        "dots_hot_tier": (
            text,
            [number, pointer, number, ctypes.c_double, ctypes.c_double],
        ),
        "dots_hot_tier_part": (
            text,
            [number, number, number, number, ctypes.c_uint64, ctypes.c_uint64, number],
        ),
        "dots_hot_loaded": (None, [number]),
        "dots_hot_close": (None, [number]),
        "dots_hot_layers": (number, [number, pointer, number]),
        "dots_hot_reserve": (text, [number, number, number]),
        "dots_hot_place": (text, [number, number, number, number]),
        "dots_hot_residents": (number, [number, number, pointer, number]),
        "dots_hot_set_trial": (None, [number, number]),
        "dots_hot_set_streaming": (None, [number, number]),
        "dots_hot_read_counters": (number, [number, pointer]),
        "dots_hot_read_heat": (number, [number, number, pointer, pointer, number]),
        "dots_hot_trace": (text, [number, text]),
        "dots_hot_messages": (text, [number]),
        "dots_hot_set_ram": (None, [number, ctypes.c_uint64]),
        "dots_hot_set_heat": (None, [number, number, pointer, number]),
        "dots_hot_warm": (None, [number, pointer, number]),
        "dots_hot_read_ram": (number, [number, pointer]),
        "dots_hot_failure": (text, [number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
