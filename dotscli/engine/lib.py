"""The way to llama.cpp: its Python declarations, and ggml's functions from the same libraries.

Two things are done on purpose here. llama_cpp's package imports numpy, jinja2 and its own engine,
0.15 s that nobody needs for the C interface, so only the module with the declarations is loaded.
And ggml's functions are looked up through libllama's handle: the installed libggml.so is a full
copy of the libggml.so.0 that libllama has mapped, with a device registry of its own in which
nothing is ever registered.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dotscli.errors import DotsError

SPIN_COUNT = "1000"  # a few us; measured beside 100, 3,000, 10,000 and 100,000
MISSING_HINT = 'install it with: pip install "llama-cpp-python>=0.3.36"'
# What a build for GPUs can't be loaded without: the beginning of its name, and where it comes from.
TOOLKIT = "which is part of CUDA", "add CUDA's library folder to LD_LIBRARY_PATH"
NEEDED = {
    "libcuda.": (
        "which comes with NVIDIA's driver",
        "install the driver, or llama-cpp-python without CUDA: see GPUs in the README",
    ),
    "libcudart.": TOOLKIT,
    "libcublas": TOOLKIT,
    "libvulkan.": ("the Vulkan loader", "install it, or llama-cpp-python without Vulkan"),
}


@functools.cache
def llama() -> Any:
    """llama.cpp's C interface as ctypes declarations, with the backends initialised once.

    It says nothing: a backend for GPUs would greet on stderr when it is initialised.

    Raises:
        DotsError: llama-cpp-python is not installed, too old, or its library does not load.
    """
    _wait_briefly()
    module = submodule("llama_cpp")
    silence(module)
    module.llama_backend_init()
    return module


def _wait_briefly() -> None:
    """Threads that wait for each other give their core away after a few us.

    libgomp lets them spin for some ms, and every operation of a graph ends with a wait: where
    another program takes one of the cores, its threads then take turns with spinning ones. libgomp
    looks at the variable when it is loaded; who has set it or OMP_WAIT_POLICY knows better.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def silence(module: Any) -> None:
    """Throws away what llama.cpp logs, until it is given a callback.

    The callback is a C function that ignores its arguments, so it works without Python.
    """
    harmless = ctypes.cast(module.llama_time_us, module.llama_log_callback)
    module.llama_log_set(harmless, ctypes.c_void_p(None))


def submodule(name: str) -> Any:
    """`llama_cpp.NAME`, loaded without running the package's `__init__`.

    A later `import llama_cpp` elsewhere works as ever and finds the module already there.
    """
    with _package_not_run():
        try:
            return importlib.import_module(f"llama_cpp.{name}")
        except (OSError, RuntimeError, AttributeError) as error:
            raise _not_loaded(str(error)) from error


def _not_loaded(reason: str) -> DotsError:
    """Why libllama doesn't load, from what the dynamic linker says."""
    missing = re.search(r"(lib\S+): cannot open shared object file", reason)
    for beginning, (what, hint) in NEEDED.items():
        if missing and missing[1].startswith(beginning):
            return DotsError(f"llama.cpp can't be loaded: {missing[1]} is missing, {what}", hint)
    return DotsError(f"llama.cpp can't be loaded: {reason}", hint="run: dots doctor")


@contextmanager
def _package_not_run() -> Iterator[None]:
    if "llama_cpp" in sys.modules:
        yield
        return
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise DotsError("llama-cpp-python is not installed", hint=MISSING_HINT)
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules["llama_cpp"]


def ggml(name: str, result: Any, *arguments: Any) -> Any:
    """A C function of ggml, taken from the libraries that libllama itself has mapped.

    Args:
        name: e.g. "ggml_backend_dev_count".
        result: ctypes type of the result, None for void.
        arguments: ctypes types of the arguments.

    Raises:
        DotsError: this build of llama.cpp has no such function.
    """
    for library in _libraries():
        try:
            function = library[name]
        except AttributeError:
            continue
        function.restype = result
        function.argtypes = list(arguments)
        return function
    raise DotsError(f"this llama.cpp has no function {name}", hint=MISSING_HINT)


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    module = llama()
    if sys.platform != "win32":
        return (module._lib,)  # a handle's dependencies are searched too
    # Windows looks into one library at a time; there the names have no version and no copies.
    folder = module._base_path
    return (module._lib, *(ctypes.CDLL(str(path)) for path in sorted(folder.glob("*ggml*.dll"))))


@functools.cache
def versions() -> dict[str, str]:
    """Versions of llama-cpp-python, llama.cpp and ggml, as they say themselves."""
    from importlib.metadata import version  # 20 ms that a prompt need not wait

    text = ggml("ggml_version", ctypes.c_char_p)
    commit = ggml("ggml_commit", ctypes.c_char_p)
    return {
        "llama-cpp-python": version("llama-cpp-python"),
        "llama.cpp": llama().llama_version().decode(),
        "ggml": f"{text().decode()} ({commit().decode()})",
    }
