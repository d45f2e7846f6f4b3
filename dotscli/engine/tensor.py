"""A tensor of ggml's graph as numpy sees it: its operation, its sources, its values.

The layout is that of `struct ggml_tensor` in the public header ggml.h; the installed library is
asked how large its tensors are, so that another layout is noticed and not misread. It knows nothing
of what a graph computes.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from dotscli.engine.lib import ggml
from dotscli.errors import DotsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DIMS, MAX_SOURCES = 4, 10
F32, I32 = 0, 26  # enum ggml_type
_OBJECT_NBYTES = 32  # struct ggml_object, the rest of what ggml_tensor_overhead counts


class Tensor(ctypes.Structure):
    """struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * MAX_DIMS),
        ("nb", ctypes.c_size_t * MAX_DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * MAX_SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )

    @property
    def weight_name(self) -> str:
        """The name without what the scheduler writes around it: CUDA0#blk.0.attn_k.weight#0."""
        name = str(self.name.decode("utf-8", "replace"))
        return name.split("#")[1] if "#" in name else name

    def source(self, number: int) -> Tensor:
        """One of the tensors that this one is computed from."""
        return Tensor.from_address(self.src[number])


def check_layout() -> None:
    """Whether the installed library's tensors are laid out as here, as far as their size tells.

    Raises:
        DotsError: they are not.
    """
    nbytes = ggml("ggml_tensor_overhead", ctypes.c_size_t)() - _OBJECT_NBYTES
    if nbytes != ctypes.sizeof(Tensor):
        raise DotsError(
            f"this llama.cpp has tensors of {nbytes} bytes, expected {ctypes.sizeof(Tensor)}",
            hint="install a version of llama-cpp-python that dots supports; installed: dots doctor",
        )


class Reader:
    """Values of computed tensors, wherever they lie."""

    def __init__(self) -> None:
        self._is_host = ggml("ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._get = ggml("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self._nbytes = ggml("ggml_nbytes", size, pointer)
        self._describe = ggml("ggml_op_desc", ctypes.c_char_p, pointer)
        self._operations: dict[int, bytes] = {}  # by number: asked once each
        self._copy: Any = ctypes.create_string_buffer(0)

    def operation(self, tensor: Tensor) -> bytes:
        """What computes it: MUL_MAT, MUL_MAT_ID, ADD ..."""
        name = self._operations.get(tensor.op)
        if name is None:
            name = self._operations[tensor.op] = self._describe(ctypes.byref(tensor))
        return name

    def values(self, tensor: Tensor) -> NDArray[Any]:
        """Three dimensions of an F32 or I32 tensor, the innermost last, strides as they are.

        What lies in main memory isn't copied: it holds until the graph goes on. Copies of what
        lies on a device hold until the next call.
        """
        import numpy as np

        address, nbytes = tensor.data, int(self._nbytes(ctypes.byref(tensor)))
        if not self._is_host(tensor.buffer):
            if len(self._copy) < nbytes:
                self._copy = ctypes.create_string_buffer(nbytes)
            self._get(ctypes.byref(tensor), self._copy, 0, nbytes)
            address = ctypes.addressof(self._copy)
        raw = memoryview((ctypes.c_char * nbytes).from_address(address))
        dtype = np.dtype("<f4" if tensor.type == F32 else "<i4")
        shape, strides = tuple(tensor.ne[2::-1]), tuple(tensor.nb[2::-1])
        values: NDArray[Any] = np.ndarray(shape, dtype, raw, 0, strides)
        return values
