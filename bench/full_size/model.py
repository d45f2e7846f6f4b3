"""A GGUF that computes: random blocks as weights, routers that send tokens to different experts.

On a file system whose files can share blocks, the matrices lie in one file of random blocks and the
model refers to windows of it, each expert to another one: the real model's 77.5 GiB take less than
4 GB. Elsewhere every matrix has blocks of its own.

Routing is that of `bench.gpu.model`: what attention and experts add to a token's embedding is small
beside it, so a random router sees the token in every layer, and the bias makes some experts
popular. Special tokens have no logit, so that an answer goes on.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.full_size.blocks import Blocks
from bench.full_size.reflink import BLOCK, can_clone, clone
from bench.full_size.shapes import StandIn
from bench.gpu.model import SIGMOID_SLOPE, WORDS, Routing
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.plan import TensorPlan
from dotscli.quantize.rows.codec import Codec

PIECE = 32 << 20  # bytes made and written at a time
WINDOW = 512 << 20  # bytes of shared blocks of each type and spread
WIDE, SMALL = 0.02, 0.001  # spread of weights; of those that add to the residual stream
SHARED = ".blocks"  # the suffix of the file that the model shares blocks with


def write_model(path: Path, made: StandIn, routing: Routing, seed: int = 0) -> bool:
    """Write the model, whole or not at all; True if it shares its blocks.

    Raises:
        OSError: the disk is full, or another failure of the file system.
    """
    part = path.with_name(path.name + ".part")
    shared = can_clone(path.parent)
    blocks_path = path.with_suffix(SHARED)
    try:
        with part.open("wb+") as file, blocks_path.open("wb+") as blocks:
            file.write(made.header)
            file.truncate(made.nbytes)
            writer = _Writer(made, routing, seed, file.fileno(), blocks.fileno() if shared else -1)
            for tensor in made.plan.tensors:
                writer.write(tensor)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        blocks_path.unlink(missing_ok=True)  # its blocks stay as long as the model has them
    return shared


class _Writer:
    def __init__(
        self, made: StandIn, routing: Routing, seed: int, target: int, shared: int
    ) -> None:
        self._made = made
        self._routing = routing
        self._random = np.random.default_rng(seed)
        self._blocks = Blocks(seed)
        self._target = target
        self._shared = shared  # the file of shared blocks, or -1
        self._shared_end = 0
        self._windows: dict[tuple[str, float], tuple[int, int]] = {}

    def write(self, tensor: TensorPlan) -> None:
        """One tensor, at its place."""
        at = len(self._made.header) + tensor.offset
        if not tensor.type.quantized:
            self._put(self._floats(tensor), at)
        elif tensor.name.startswith("token_embd"):
            self._put(self._embeddings(tensor), at)
        else:
            small = "_down" in tensor.name or "attn_output" in tensor.name
            spread = SMALL if small else WIDE
            for matrix in range(tensor.spec.n_experts):
                start = at + matrix * tensor.matrix_nbytes
                self._matrix(tensor.type, spread, tensor.matrix_nbytes, start)
            if tensor.name.startswith("output"):
                first = min(self._made.n_text_tokens, tensor.shape[0])
                silent = (tensor.shape[0] - first) * tensor.row_nbytes
                self._put(np.zeros(silent, np.uint8), at + tensor.nbytes - silent)

    def _floats(self, tensor: TensorPlan) -> NDArray[np.uint8]:
        shape = tensor.shape
        if tensor.name.endswith("exp_probs_b.bias"):
            values = SIGMOID_SLOPE * self._routing.skew * self._random.standard_normal(shape)
        elif len(shape) > 1:  # the router
            values = self._random.standard_normal(shape) * shape[-1] ** -0.5
        else:
            values = np.ones(shape)
        if tensor.type.name != "F32":
            raise ValueError(f"{tensor.name} as {tensor.type.name} is not known")
        return values.astype("<f4").reshape(-1).view(np.uint8)

    def _embeddings(self, tensor: TensorPlan) -> NDArray[np.uint8]:
        """A part that the tokens of a topic share, and a part of each token's own."""
        n_words, n_columns = min(WORDS, tensor.shape[0]), tensor.shape[1]
        own = self._random.standard_normal((n_words, n_columns), np.float32)
        topics = self._random.standard_normal((self._routing.topics, n_columns), np.float32)
        part = np.float32(self._routing.topic)
        topic = topics[np.arange(n_words) % self._routing.topics]
        values = np.sqrt(part) * topic + np.sqrt(1 - part) * own
        rows = np.empty((n_words, tensor.row_nbytes), np.uint8)
        source = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8).data
        Codec().encode(source, "F32", n_columns, tensor.type, rows.reshape(-1))
        return np.resize(rows, (tensor.shape[0], tensor.row_nbytes)).reshape(-1)

    def _matrix(self, kind: TensorType, spread: float, nbytes: int, at: int) -> None:
        if self._shared < 0 or nbytes % BLOCK or at % BLOCK:
            self._own(kind, spread, nbytes, self._target, at)
            return
        start, size = self._window(kind, spread)
        step = math.lcm(kind.block_nbytes, BLOCK)
        first = int(self._random.integers(size // step)) * step
        while nbytes:
            n = min(nbytes, size - first)
            clone(self._shared, start + first, n, self._target, at)
            nbytes, at, first = nbytes - n, at + n, 0

    def _window(self, kind: TensorType, spread: float) -> tuple[int, int]:
        """Where the shared blocks of a type begin, and how many bytes they have."""
        key = (kind.name, spread)
        if key not in self._windows:
            step = math.lcm(kind.block_nbytes, BLOCK)
            size = WINDOW // step * step
            self._own(kind, spread, size, self._shared, self._shared_end)
            os.fsync(self._shared)
            self._windows[key] = (self._shared_end, size)
            self._shared_end += -(-size // BLOCK) * BLOCK
        return self._windows[key]

    def _own(self, kind: TensorType, spread: float, nbytes: int, file: int, at: int) -> None:
        piece = PIECE // kind.block_nbytes * kind.block_nbytes
        for start in range(0, nbytes, piece):
            n = min(piece, nbytes - start) // kind.block_nbytes
            _write(file, self._blocks.make(kind, n, spread), at + start)

    def _put(self, data: NDArray[np.uint8], at: int) -> None:
        _write(self._target, data, at)


def _write(file: int, data: NDArray[np.uint8], at: int) -> None:
    view = data.reshape(-1).data
    while view:
        n = os.pwrite(file, view, at)
        view, at = view[n:], at + n
