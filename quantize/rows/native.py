"""The door to libdots_quantizers: the K-quants and non-linear quants, many blocks at a time.

The library is a part of this package, built from dotscli/native where a compiler was found. Nothing
depends on it: whoever gets None from `quantizer` uses ggml_quantize_chunk, which gives the same
bytes. That they are the same is not taken for granted, since both sides may have been compiled or
written anew: the first use of a type compares them on a sample, and a difference leaves ggml's.

DOTS_NATIVE=0 in the environment switches the library off; baseline, avx2 or avx512 selects a path.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.types import BF16, F16, F32, IQ4_NL, IQ4_XS, Q4_K, Q5_K, Q6_K

SWITCH = "DOTS_NATIVE"
TYPES = (Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS)

_ABI = 1
_SOURCES = {kind.name: kind.id for kind in (F32, F16, BF16)}
_SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}
_SAMPLE_COLUMNS = 512


@dataclass(frozen=True)
class Native:
    """The opened library on one path (the instruction set that it uses)."""

    library: ctypes.CDLL
    path: str

    def quantize(
        self,
        source: int,
        dtype: str,
        n_rows: int,
        n_columns: int,
        kind: TensorType,
        out: NDArray[np.uint8],
        importance: NDArray[np.float32] | None,
    ) -> int:
        """Quantize n_rows * n_columns finite weights of F32, F16 or BF16.

        Args:
            source: address of the first weight, aligned or not.
            kind: one of TYPES; n_columns is a multiple of its block.
            out: takes the rows, contiguous and large enough.
            importance: n_columns float32, contiguous, or None.

        Returns:
            Bytes written to out.
        """
        weights = None if importance is None else importance.ctypes.data
        status = self.library.dots_quantize_on(
            self.path.encode(), kind.id, source, _SOURCES[dtype], out.ctypes.data,
            n_rows, n_columns, weights,
        )  # fmt: skip
        if status:
            raise ValueError(f"dots_quantize_on: status {status} for {n_rows} x {n_columns} {kind}")
        return n_rows * kind.row_nbytes(n_columns)


def quantizer(kind: TensorType, weighted: bool, ggml: ctypes.CDLL) -> Native | None:
    """The library, if it is there, knows the type, and gives the bytes that ggml gives here.

    Args:
        weighted: whether there is an importance matrix.
        ggml: libggml-base with the signature of ggml_quantize_chunk set.

    Raises:
        DotsError: DOTS_NATIVE is set to something unknown.
    """
    if kind not in TYPES:
        return None
    native, _ = opened()
    return native if native is not None and agrees(native, kind, weighted, ggml) else None


def opened() -> tuple[Native | None, str]:
    """The library and the path it uses, or None and why it is not used.

    Raises:
        DotsError: DOTS_NATIVE is set to something unknown.
    """
    return _opened(os.environ.get(SWITCH, ""))


@lru_cache
def _opened(setting: str) -> tuple[Native | None, str]:
    if setting == "0":
        return None, f"{SWITCH}=0"
    path = next((path for path in _candidates() if path.is_file()), None)
    if path is None:
        return None, "not built: dots was installed without a C++ compiler"
    try:
        library = ctypes.CDLL(str(path))
        abi = library.dots_quantizers_abi()
    except (OSError, AttributeError) as error:
        return None, f"{path}: {error}"
    if abi != _ABI:
        return None, f"{path} is of another version (ABI {abi}, not {_ABI})"
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    library.dots_quantize_on.argtypes = [
        ctypes.c_char_p, ctypes.c_int, pointer, ctypes.c_int, pointer, i64, i64, pointer,
    ]  # fmt: skip
    library.dots_quantize_path.restype = ctypes.c_char_p
    available = paths(library)
    if setting and setting not in available:
        raise DotsError(
            f"{SWITCH}={setting}: no such code path on this processor",
            hint=f"unset it, or one of: 0 {' '.join(available)}",
        )
    return Native(library, setting or available[0]), setting or available[0]


def _candidates() -> Iterator[Path]:
    name = "libdots_quantizers" + _SUFFIXES.get(sys.platform, ".so")
    try:  # in an editable install the library is in site-packages, away from the sources
        files = importlib.metadata.distribution("dotscli")
        yield Path(str(files.locate_file(f"dotscli/lib/{name}")))
    except importlib.metadata.PackageNotFoundError:
        pass
    import dotscli

    for folder in dotscli.__path__:
        yield Path(folder) / "lib" / name


def paths(library: ctypes.CDLL) -> list[str]:
    """The paths that this processor can run, the widest first."""
    found: list[str] = []
    while (name := library.dots_quantize_path(len(found))) is not None:
        found.append(name.decode())
    return found


@lru_cache
def agrees(native: Native, kind: TensorType, weighted: bool, ggml: ctypes.CDLL) -> bool:
    """Whether both make the same bytes of 131,072 weights: once, in 5 to 30 milliseconds."""
    weights, importance = _sample()
    n_rows, n_columns = weights.shape
    ours, theirs = (np.empty(n_rows * kind.row_nbytes(n_columns), np.uint8) for _ in range(2))
    given = importance if weighted else None
    native.quantize(weights.ctypes.data, "F32", n_rows, n_columns, kind, ours, given)
    ggml.ggml_quantize_chunk(
        kind.id, weights.ctypes.data, theirs.ctypes.data, 0, n_rows, n_columns,
        importance.ctypes.data if weighted else None,
    )  # fmt: skip
    return ours.tobytes() == theirs.tobytes()


@lru_cache(maxsize=1)
def _sample() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows whose blocks have several almost equally good scales: these show a sum rounded
    differently (by a fused multiply-add, say) most often, though in Q6_K in one block of 50."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((256, _SAMPLE_COLUMNS))
    noise[:160] *= np.repeat(np.exp2(rng.integers(-18, 2, (160, _SAMPLE_COLUMNS // 16))), 16, 1)
    noise[160:224] = rng.standard_normal((64, 1)) + np.linspace(-1, 1, _SAMPLE_COLUMNS)
    noise[224:240] = 1 + noise[224:240] * 1e-6
    importance = np.exp(rng.standard_normal(_SAMPLE_COLUMNS))
    return noise.astype(np.float32), importance.astype(np.float32)
