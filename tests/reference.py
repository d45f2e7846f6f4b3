"""llama.cpp's own quantizer, driven through llama_cpp's low-level API: what presets are held to.

The input is a GGUF on disk; `read_tensors` gives the tensors of any GGUF by name, for comparing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    any_alignment: bool = False,
) -> None:
    """llama_model_quantize of source into out.

    It copies general.alignment and pads to 32 bytes all the same, so it gets a source without.

    Args:
        any_alignment: give it the source as it is.
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
    plain = out.with_name(f"{out.stem}-source.gguf")
    if any_alignment:
        plain.symlink_to(source)
    else:
        with_default_alignment(source, plain)
    with _quiet():
        status = llama_cpp.llama_model_quantize(
            str(plain).encode(), str(out).encode(), ctypes.byref(params)
        )
    plain.unlink()
    assert status == 0, f"llama_model_quantize returned {status}"


def with_default_alignment(source: Path, out: Path) -> Path:
    """The same model as the package gguf writes it: general.alignment left out. Returns out."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.alignment"):
            continue
        element = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


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


@contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp says nothing meanwhile; whoever listened before does so again."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(silent, None)
    try:
        yield
    finally:
        llama_cpp.llama_log_set(before, data)
