"""A GGUF of dots.llm1's real shapes, as large as one likes, with a routing of one's choice.

Names, types and bytes of the tensors are what `dots quantize` would write (recipe q4). The weights
are noise: for every type and length of row a bank of rows is quantized once, and each matrix takes
its rows from there in turn, every one beginning at another row. So 40 GB are written as fast as the
disk goes, and no two experts of a layer are the same.

Routing. A token's embedding is the sum of a part that all tokens of its topic share and a part of
its own; what attention and experts add to it is kept small, so a router with random rows sees it in
every layer. Scores of an expert are then alike within a topic, and the router's bias makes some
experts popular whatever the token. `stream` draws tokens that stay in a topic for a while: skew is
set by the bias, locality by the topics.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.lib.checkpoint import Shape, config
from bench.lib.measure import note
from bench.lib.traces import repeated, top_share
from dotscli.hot import heat_store
from dotscli.hot.backend import plugin
from dotscli.hot.heat import Heat
from dotscli.models.gguf_type import TensorType
from dotscli.quantize import plan_checkpoint
from dotscli.quantize.rows.codec import Codec
from tests.dots1_gguf import Run, Type, header, log

BANK_ROWS = 509  # a prime: experts, whose number of rows is even, all begin at different rows
SIGMOID_SLOPE = 0.2  # spread of sigmoid(x) where x has a spread of 1
WORDS = 4096  # different embeddings; the tokens above have those of the tokens below
REAL = Shape(layers=62, hidden=4096, heads=32, dense_width=10_944, expert_width=1408, experts=128)
TINY = Shape(
    layers=6, hidden=256, heads=4, dense_width=352, expert_width=160, experts=32, vocab="small"
)
BATCH = 64  # tokens computed at once while routing is observed


@dataclass(frozen=True)
class Routing:
    """How a model and a stream of tokens route.

    Attributes:
        skew: spread of the experts' popularity, in units of the spread of their scores.
        topic: part of a score's variance that the tokens of one topic have in common, 0 to 1.
        memory: probability that the next token has the same topic.
        topics: how many there are.
    """

    skew: float = 0.5
    topic: float = 0.5
    memory: float = 0.95
    topics: int = 32

    def stream(self, n_tokens: int, n_vocab: int, seed: int) -> list[int]:
        """Tokens to feed; a token's topic is its id modulo the number of topics."""
        random = np.random.default_rng(seed)
        words = min(WORDS, n_vocab) // self.topics
        topic = random.integers(self.topics)
        tokens = []
        for _ in range(n_tokens):
            if random.random() > self.memory:
                topic = random.integers(self.topics)
            tokens.append(int(random.integers(words) * self.topics + topic))
        return tokens


def fitting(shape: Shape, nbytes: int) -> Shape:
    """The shape with as many layers, at least 3, as fit into nbytes."""
    few, more = (sum(t.nbytes for t in plan(replace(shape, layers=n))) for n in (16, 24))
    n_layers = int(16 + (nbytes - few) / ((more - few) / 8))
    return replace(shape, layers=max(3, min(shape.layers, n_layers)))


def plan(shape: Shape) -> tuple[Any, ...]:
    """The tensors that `dots quantize` would write, with names, shapes, types and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config(shape)))
        return plan_checkpoint(Path(folder), "q4").tensors


class Weights:
    """Quantized rows, made once for each type, length and scale."""

    def __init__(self, shape: Shape, routing: Routing, seed: int) -> None:
        self._shape = shape
        self._routing = routing
        self._random = np.random.default_rng(seed)
        self._codec = Codec()
        self._banks: dict[tuple[str, int, float], NDArray[np.uint8]] = {}
        self._at = 0

    def tensor(self, name: str, shape: tuple[int, ...], kind: TensorType) -> NDArray[Any]:
        """The whole tensor as it is stored: float32, or bytes [rows, row size]."""
        random = self._random
        if name.endswith("exp_probs_b.bias"):
            spread = SIGMOID_SLOPE * self._routing.skew
            return (spread * random.standard_normal(shape)).astype(np.float32)
        if "ffn_gate_inp" in name:
            return random.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        n_rows = int(np.prod(shape[:-1]))
        if name.startswith("token_embd"):
            rows = self._quantized(self._embeddings(), kind)
            return np.resize(rows, (n_rows, rows.shape[1]))
        # What is added to the residual stream is small beside the embedding.
        small = "_down" in name or "attn_output" in name
        rows = self._bank(kind, shape[-1], 0.001 if small else 0.02)
        self._at += 1  # the same matrix of another layer begins elsewhere
        return np.resize(np.roll(rows, -self._at, axis=0), (n_rows, rows.shape[1]))

    def _embeddings(self) -> NDArray[np.float32]:
        n_words = min(WORDS, self._shape.vocab_size)
        own = self._random.standard_normal((n_words, self._shape.hidden), np.float32)
        topics = self._random.standard_normal(
            (self._routing.topics, self._shape.hidden), np.float32
        )
        shared = topics[np.arange(n_words) % self._routing.topics]
        part = np.float32(self._routing.topic)
        return np.sqrt(part) * shared + np.sqrt(1 - part) * own

    def _bank(self, kind: TensorType, n_columns: int, scale: float) -> NDArray[np.uint8]:
        key = (kind.name, n_columns, scale)
        if key not in self._banks:
            values = self._random.standard_normal((BANK_ROWS, n_columns), np.float32)
            self._banks[key] = self._quantized(values * np.float32(scale), kind)
        return self._banks[key]

    def _quantized(self, values: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
        out = np.empty((len(values), kind.row_nbytes(values.shape[1])), np.uint8)
        source = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        self._codec.encode(source, "F32", values.shape[1], kind, out.reshape(-1))
        return out


def write_model(path: Path, shape: Shape, routing: Routing, seed: int = 0) -> int:
    """Write the GGUF, whole or not at all; returns its bytes."""
    part = path.with_suffix(".part")
    weights = Weights(shape, routing, seed)
    tensors = plan(shape)
    writer = header(part, config(shape))
    for tensor in tensors:
        kind = Type[tensor.type.name]
        writer.add_tensor_info(
            tensor.name, tensor.spec.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(weights.tensor(tensor.name, tensor.spec.shape, tensor.type))
    writer.close()
    part.rename(path)
    return path.stat().st_size


def observe(
    path: Path, routing: Routing, heat: Path, n_tokens: int, n_threads: int
) -> dict[str, float]:
    """Route a stream on the CPU: what skew and locality came out. Keeps the heat in a file.

    Shares: of the calls, those that the hottest tenth and quarter take, chosen by the first half of
    the stream and counted in the second; and the calls to experts that the token before used too.
    """
    trace_file = heat.with_suffix(".trace")
    with log():
        books = plugin.backend().open(None)
        with Run(path, books, n_threads=n_threads) as run:
            tokens = routing.stream(n_tokens, run.n_vocab, seed=1)
            books.trace(trace_file)
            for start in range(0, n_tokens, BATCH):
                if start % 512 == 0:
                    run.clear()
                run.decode(tokens[start : start + BATCH])
            books.trace(None)
            n_experts = books.layers()[0].n_experts
            counts = {layer: decode + prefill for layer, (decode, prefill) in books.heat().items()}
    heat_store.save(Heat.of(counts), heat)
    layers: dict[int, list[NDArray[np.int16]]] = {}
    for layer, ids in heat_store.read_trace(trace_file):
        layers.setdefault(layer, []).append(ids)
    trace = np.stack([np.concatenate(parts) for _, parts in sorted(layers.items())], axis=1)
    trace_file.unlink()
    return {
        "hottest_tenth": top_share(trace, n_experts, 0.1)[1],
        "hottest_quarter": top_share(trace, n_experts, 0.25)[1],
        "used_by_the_token_before": repeated(trace),
    }


def make(path: Path, shape: Shape, routing: Routing, n_tokens: int, n_threads: int) -> None:
    """Write model, heat and what is known of both (`facts_of`) into the folder of `path`."""
    start = time.monotonic()
    nbytes = path.stat().st_size if path.exists() else write_model(path, shape, routing)
    written = time.monotonic()
    observed = observe(path, routing, heat_of(path), n_tokens, n_threads)
    note(
        f"  {nbytes / 2**30:.1f} GiB written in {written - start:.0f} s, routing observed in "
        f"{time.monotonic() - written:.0f} s: {observed}"
    )
    facts = {
        "nbytes": nbytes,
        "shape": asdict(shape),
        "routing": asdict(routing),
        "observed": observed,
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1))


def heat_of(path: Path) -> Path:
    """The heat file of a model that `make` wrote."""
    return path.with_suffix(".heat.json")


def facts_of(path: Path) -> dict[str, Any]:
    """What `make` wrote about its model."""
    facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return facts
