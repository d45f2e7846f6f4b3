"""How fast llama.cpp goes through weights in main memory on this machine: measured, in a second.

A token multiplies one vector with every matrix that it uses, so what it costs is bytes over this
rate: bounded by main memory where there are many cores, by the cores where there are few. The
matrices are Q4_K and of the size of an expert's, computed by ggml's own CPU backend with as many
threads as a load takes; a MiB of random weights is repeated until no cache holds it. It keeps
nothing.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import ExitStack

import numpy as np

from dotscli.engine.cores import usable_cores
from dotscli.engine.cpu import POINTER
from dotscli.engine.lib import ggml
from dotscli.errors import DotsError

MEASURED_S = 0.6
N_MATRICES = 160  # 519 MB; the last-level caches of servers reach some hundred
LEAST_MATRICES = 40
WIDTH, ROWS = 4096, 1408  # a gate of dots.llm1's experts
Q4_K, F32 = 12, 0  # enum ggml_type
ROW_NBYTES = WIDTH // 256 * 144  # block_q4_K
MATRIX_NBYTES = ROWS * ROW_NBYTES


class _Params(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("nbytes", ctypes.c_size_t), ("buffer", POINTER), ("no_alloc", ctypes.c_bool))


def weight_rate(free_nbytes: int) -> float:
    """Bytes of weights that decoding goes through in a second, all of them in main memory.

    Args:
        free_nbytes: what of it may be used; an eighth is, at most 519 MB.

    Raises:
        DotsError: too little is free.
    """
    n_matrices = min(N_MATRICES, free_nbytes // 8 // MATRIX_NBYTES)
    if n_matrices < LEAST_MATRICES:
        raise DotsError("too little memory is free to measure how fast it is", "end other programs")
    with ExitStack() as held:
        return _rate(held, n_matrices)


def _rate(held: ExitStack, n_matrices: int) -> float:
    integer, int64, size = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
    backend = ggml("ggml_backend_init_by_name", POINTER, ctypes.c_char_p, POINTER)(b"CPU", None)
    if not backend:
        raise DotsError("llama.cpp has no CPU backend", "run: dots doctor")
    held.callback(ggml("ggml_backend_free", None, POINTER), backend)
    ggml("ggml_backend_cpu_set_n_threads", None, POINTER, integer)(backend, usable_cores())

    new = ggml("ggml_new_tensor_2d", POINTER, POINTER, integer, int64, int64)
    params = _Params(4 << 20, None, True)  # 160 tensors, their products and a graph: under 1 MiB
    context = ggml("ggml_init", POINTER, _Params)(params)
    held.callback(ggml("ggml_free", None, POINTER), context)
    vector = new(context, F32, WIDTH, 1)
    matrices = [new(context, Q4_K, WIDTH, ROWS) for _ in range(n_matrices)]
    graph = ggml("ggml_new_graph", POINTER, POINTER)(context)
    multiply = ggml("ggml_mul_mat", POINTER, POINTER, POINTER, POINTER)
    expand = ggml("ggml_build_forward_expand", None, POINTER, POINTER)
    for matrix in matrices:
        expand(graph, multiply(context, matrix, vector))
    allocate = ggml("ggml_backend_alloc_ctx_tensors", POINTER, POINTER, POINTER)
    buffer = allocate(context, backend)
    if not buffer:
        raise DotsError("too little memory is free to measure how fast it is", "end other programs")
    held.callback(ggml("ggml_backend_buffer_free", None, POINTER), buffer)

    fill = ggml("ggml_backend_tensor_set", None, POINTER, POINTER, size, size)
    weights, values = _weights(), np.ones(WIDTH, np.float32)
    fill(vector, values.ctypes.data, 0, values.nbytes)
    for matrix in matrices:
        fill(matrix, weights.ctypes.data, 0, MATRIX_NBYTES)

    compute = ggml("ggml_backend_graph_compute", integer, POINTER, POINTER)
    best, end = 0.0, time.perf_counter() + MEASURED_S
    while not best or time.perf_counter() < end:
        since = time.perf_counter()
        if compute(backend, graph):
            raise DotsError("llama.cpp could not compute a product", "run: dots doctor")
        best = max(best, n_matrices * MATRIX_NBYTES / (time.perf_counter() - since))
    return best


def _weights() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """One matrix, quantized by ggml: made-up bytes hold scales that are no numbers."""
    n_rows = 64
    random = np.random.default_rng(1).standard_normal((n_rows, WIDTH), np.float32)
    block = np.empty(n_rows * ROW_NBYTES, np.uint8)
    arguments = (ctypes.c_int, POINTER, POINTER, *[ctypes.c_int64] * 3, POINTER)
    quantize = ggml("ggml_quantize_chunk", ctypes.c_size_t, *arguments)
    quantize(Q4_K, random.ctypes.data, block.ctypes.data, 0, n_rows, WIDTH, None)
    return np.tile(block, ROWS // n_rows)
