"""Devices to be hot on without a GPU: a second CPU backend, one that lags, one over RPC.

The lagging device (tests/native/lagging_device.cpp) is built once per run with the system's
compiler and CXXFLAGS.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dotscli.hot.backend import library

ROOT = Path(__file__).resolve().parents[1]
SERVE = """
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
lib.ggml_backend_dev_by_type.restype = ctypes.c_void_p
devices = (ctypes.c_void_p * 1)(lib.ggml_backend_dev_by_type(0))
n_threads = n_devices = ctypes.c_size_t(1)
lib.ggml_backend_rpc_start_server(sys.argv[2].encode(), None, n_threads, n_devices, devices)
"""


def compiler() -> str | None:
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


class LaggingDevice:
    """Lag0: asynchronous, slow by random pauses, and able to refuse memory or to fail."""

    name = "Lag0"

    def __init__(self, folder: Path) -> None:
        command = compiler()
        assert command, "no C++ compiler"
        target = folder / "liblagging.so"
        native = ROOT / "dotscli/native"
        sources = [
            ROOT / "tests/native/lagging_device.cpp",
            native / "hot/ggml_calls.cpp",
            native / "hot/symbols_posix.cpp",
        ]
        subprocess.run(
            [command, "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden",
             *os.environ.get("CXXFLAGS", "").split(),
             f"-I{native}", *sources, "-o", target, "-ldl", "-lpthread"],
            check=True,
        )  # fmt: skip
        self.library = ctypes.CDLL(str(target))
        libllama = ctypes.CDLL(str(library.llama_path()))
        for function in (self.library.lag_uploaded_nbytes, self.library.lag_largest_upload):
            function.restype = ctypes.c_uint64
        assert self.library.lag_start(ctypes.c_void_p(libllama._handle)) == 0

    @contextmanager
    def refusing_memory(self, after: int) -> Iterator[None]:
        self.library.lag_limit_allocations(after)
        yield
        self.library.lag_limit_allocations(-1)

    @contextmanager
    def failing(self, after: int) -> Iterator[None]:
        self.library.lag_limit_graphs(after)
        yield
        self.library.lag_limit_graphs(-1)

    @contextmanager
    def with_pinned_memory(self) -> Iterator[None]:
        self.library.lag_offer_pinned(1)
        yield
        self.library.lag_offer_pinned(0)

    def n_pinned_buffers(self) -> int:
        return int(self.library.lag_n_pinned_buffers())

    @contextmanager
    def with_plain_memory_for_pinned(self) -> Iterator[None]:
        self.library.lag_offer_pinned(2)
        yield
        self.library.lag_offer_pinned(0)

    def n_plain_buffers(self) -> int:
        """Those that were handed out for pinned ones and have not been given back."""
        return int(self.library.lag_n_plain_buffers())

    @contextmanager
    def slow_uploads(self, *, pinned: bool, pause_us: int = 3000) -> Iterator[None]:
        """Every upload out of pinned memory takes that much longer, or out of any other."""
        self.library.lag_set_extra_pause_us(int(pinned), pause_us)
        yield
        self.library.lag_set_extra_pause_us(int(pinned), 0)

    def uploaded_nbytes(self, *, pinned: bool) -> int:
        return int(self.library.lag_uploaded_nbytes(int(pinned)))

    def largest_upload(self, *, pinned: bool) -> int:
        return int(self.library.lag_largest_upload(int(pinned)))


class _ThreadpoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


@contextmanager
def threadpool(n_threads: int) -> Iterator[int]:
    """The address of a ggml_threadpool."""
    ggml = ctypes.CDLL(str(library.llama_path()))
    ggml.ggml_threadpool_new.restype = ctypes.c_void_p
    ggml.ggml_threadpool_free.argtypes = [ctypes.c_void_p]
    params = _ThreadpoolParams(n_threads=n_threads, poll=50)
    pool = ggml.ggml_threadpool_new(ctypes.byref(params))
    yield int(pool)
    ggml.ggml_threadpool_free(pool)


def attach_threadpool(context: int, pool: int) -> None:
    llama = ctypes.CDLL(str(library.llama_path()))
    llama.llama_attach_threadpool.argtypes = [ctypes.c_void_p] * 3
    llama.llama_attach_threadpool(context, pool, pool)


def has_rpc() -> bool:
    return hasattr(ctypes.CDLL(str(library.llama_path())), "ggml_backend_rpc_add_server")


@contextmanager
def rpc_device() -> Iterator[str]:
    """The name of a device of llama.cpp's RPC backend, served by another process on loopback."""
    path = library.llama_path()
    assert path
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(path), endpoint],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _add_server(ctypes.CDLL(str(path)), endpoint, server)
    finally:
        server.kill()
        server.wait()


def _add_server(llama: ctypes.CDLL, endpoint: str, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, "the RPC server died"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(endpoint.split(":")[1]))) == 0:
                break
        time.sleep(0.05)
    llama.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    llama.ggml_backend_register.argtypes = [ctypes.c_void_p]
    llama.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
    llama.ggml_backend_reg_dev_get.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    llama.ggml_backend_dev_name.restype = ctypes.c_char_p
    llama.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    registry = llama.ggml_backend_rpc_add_server(endpoint.encode())
    assert registry
    llama.ggml_backend_register(registry)
    return str(llama.ggml_backend_dev_name(llama.ggml_backend_reg_dev_get(registry, 0)).decode())
