"""llama.cpp's own quantizer, driven through llama_cpp's low-level API: what presets are held to.

The input is a GGUF on disk; `read_tensors` gives the tensors of any GGUF by name, for comparing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def quantize(
    source: Path,
    out: Path,
    file_type: int,
    *,
    threads: int = 2,
    importance: Mapping[str, np.ndarray] | None = None,
    overrides: Sequence[tuple[str, int]] = (),
) -> None:
    """llama_model_quantize of source into out.

    Args:
        file_type: llama_ftype.
        importance: GGUF tensor name -> float32 (experts, columns), already divided by the counts.
        overrides: (regex, ggml_type), the first that matches wins.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = file_type
    params.allow_requantize = True
    kept = []  # what the C side points to must stay alive during the call
    if importance is not None:
        rows = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for row, (name, values) in zip(rows, importance.items(), strict=False):
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
            kept.append(flat)
            row.name = name.encode()
            row.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            row.size = flat.size
        params.imatrix = ctypes.cast(rows, type(params.imatrix))
    if overrides:
        patterns = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for pattern, (regex, kind) in zip(patterns, overrides, strict=False):
            pattern.pattern = regex.encode()
            pattern.type = kind
        params.tt_overrides = ctypes.cast(patterns, type(params.tt_overrides))
    _quiet(llama_cpp)
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(out).encode(), ctypes.byref(params)
    )
    assert status == 0, f"llama_model_quantize returned {status}"


def read_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """name -> (type, bytes) of every tensor of a GGUF, read by the package gguf."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in reader.tensors}


def read_keys(path: Path) -> dict[str, object]:
    """key -> value of a GGUF, read by the package gguf; without our own checksums."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    return {
        name: field.contents()
        for name, field in fields.items()
        if "GGUF." not in name and not name.startswith("dots.checksum.")
    }


_silent = None


def _quiet(llama_cpp: object) -> None:
    global _silent  # noqa: PLW0603  # the callback must live as long as the library
    if _silent is None:
        kind = llama_cpp.llama_log_callback  # type: ignore[attr-defined]
        _silent = kind(lambda level, text, data: None)
        llama_cpp.llama_log_set(_silent, None)  # type: ignore[attr-defined]
