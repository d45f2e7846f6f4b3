"""What the CPU backend of this build of llama.cpp can do, and the one thing it must not."""

from __future__ import annotations

import ctypes
import functools

from dotscli.engine.lib import ggml

POINTER = ctypes.c_void_p
NO_AMX_FLAGS = "-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__"


class _Feature(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


@functools.cache
def cpu_features() -> dict[str, str]:
    """Features the CPU backend was built with, such as AVX512, REPACK, OPENMP."""
    registry = ggml("ggml_backend_reg_by_name", POINTER, ctypes.c_char_p)(b"CPU")
    find = ggml("ggml_backend_reg_get_proc_address", POINTER, POINTER, ctypes.c_char_p)
    address = find(registry, b"ggml_backend_get_features") if registry else None
    if not address:
        return {}
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), POINTER)(address)(registry)
    found: dict[str, str] = {}
    while listed[len(found)].name:
        feature = listed[len(found)]
        found[feature.name.decode()] = feature.value.decode()
    return found


def may_crash_with_amx() -> bool:
    """Whether the build uses Intel's AMX, whose set-up GCC before 14 compiles wrongly.

    Such a build dies in the first prefill of Q4_0, Q8_0 and K-quants, and a good one cannot be
    told from a bad one without trying.
    """
    return cpu_features().get("AMX_INT8") == "1"


def caveats() -> list[str]:
    """Sentences about this build that a user should know; usually none."""
    if not may_crash_with_amx():
        return []
    return [
        "this build of llama.cpp uses AMX, which crashes when compiled by GCC before 14; "
        "repacked weights are turned off, which makes prefill slower but safe "
        f'(build llama-cpp-python with CMAKE_ARGS="{NO_AMX_FLAGS}")'
    ]
