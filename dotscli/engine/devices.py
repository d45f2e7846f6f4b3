"""The devices that llama.cpp sees and the buffer types they have."""

from __future__ import annotations

import ctypes
import dataclasses
from dataclasses import dataclass
from typing import Any

from dotscli.engine.available import available_memory
from dotscli.engine.lib import ggml
from dotscli.hot.backend.library import DEVICE_NAME

POINTER = ctypes.c_void_p
GPU_BACKENDS = ("CUDA", "MTL", "MUSA", "ROCm", "SYCL", "Vulkan")  # as they are registered
TYPES = ("CPU", "GPU", "IGPU", "ACCEL", "META")  # enum ggml_backend_dev_type, ggml-backend.h


@dataclass(frozen=True)
class Device:
    """One device of llama.cpp's registry; sizes in bytes. `handle` is its address in C."""

    name: str
    type: str
    description: str
    free_bytes: int
    total_bytes: int
    handle: int


def devices() -> list[Device]:
    """Every device in the order of llama.cpp's registry.

    For the CPU, llama.cpp gives all memory as free; here it is what this process may still take.
    """
    available = available_memory().nbytes
    return [
        dataclasses.replace(device, free_bytes=min(available, device.total_bytes))
        if device.type == "CPU"
        else device
        for device in registered()
    ]


def registered() -> list[Device]:
    """Every device as llama.cpp describes it, but for the one that hot experts go through."""
    count = ggml("ggml_backend_dev_count", ctypes.c_size_t)
    get = ggml("ggml_backend_dev_get", POINTER, ctypes.c_size_t)
    found = [_device(get(i)) for i in range(count())]
    return [device for device in found if device.name != DEVICE_NAME]


def idle_backends() -> list[str]:
    """Sentences about kinds of GPU that this build is for and that aren't here; usually none."""
    count = ggml("ggml_backend_reg_count", ctypes.c_size_t)
    get = ggml("ggml_backend_reg_get", POINTER, ctypes.c_size_t)
    name = ggml("ggml_backend_reg_name", ctypes.c_char_p, POINTER)
    n_devices = ggml("ggml_backend_reg_dev_count", ctypes.c_size_t, POINTER)
    found = [get(i) for i in range(count())]
    idle = [name(handle).decode() for handle in found if not n_devices(handle)]
    return [
        f"llama.cpp was built for {kind} but finds no device: there is none, or its driver is "
        "missing or too old"
        for kind in idle
        if kind in GPU_BACKENDS
    ]


def has_gpu() -> bool:
    """Whether any device could hold layers: a GPU, also an integrated one or another machine's."""
    return any(device.type in ("GPU", "IGPU") for device in registered())


def buffer_types() -> dict[str, int]:
    """Names of the buffer types that a tensor can be sent to, with their addresses in C."""
    buffer_type = ggml("ggml_backend_dev_buffer_type", POINTER, POINTER)
    name = ggml("ggml_backend_buft_name", ctypes.c_char_p, POINTER)
    found = [buffer_type(device.handle) for device in registered()]
    return {name(address).decode(): address for address in found if address}


def _device(handle: Any) -> Device:
    def text(function: str) -> str:
        value = ggml(function, ctypes.c_char_p, POINTER)(handle)
        return value.decode("utf-8", "replace") if value else ""

    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    sizes = ctypes.POINTER(ctypes.c_size_t)
    ggml("ggml_backend_dev_memory", None, POINTER, sizes, sizes)(
        handle, ctypes.byref(free), ctypes.byref(total)
    )
    kind = ggml("ggml_backend_dev_type", ctypes.c_int, POINTER)(handle)
    return Device(
        name=text("ggml_backend_dev_name"),
        type=TYPES[kind] if 0 <= kind < len(TYPES) else str(kind),
        description=text("ggml_backend_dev_description"),
        free_bytes=free.value,
        total_bytes=total.value,
        handle=handle,
    )
