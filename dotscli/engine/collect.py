"""What goes into every weight matrix while a model evaluates: squares summed per column.

llama.cpp calls back for each node of its graph, first to ask whether its values are wanted, which
cuts the graph there, then with the values. Matrices that read the same input (query, key and value;
gate and up) get it from the first of them, and only that one cuts the graph. Which nodes count is
llama-imatrix's rule (tools/imatrix/imatrix.cpp): every MUL_MAT_ID, and every MUL_MAT of a layer's
weight with at least 16 tokens in F32. Where sums are kept and what they mean is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dotscli.engine.lib import llama
from dotscli.engine.tensor import F32, Reader, Tensor, check_layout
from dotscli.errors import DotsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST_TOKENS = 16
DENSE, ROUTED = b"MUL_MAT", b"MUL_MAT_ID"


@dataclass(frozen=True)
class Input:
    """What went into some matrices of one shape: all of them read the same.

    Attributes:
        names: of the weights, e.g. blk.3.ffn_gate_exps.weight.
        sums: squares per column, float32 (n_matrices, n_columns).
        counts: rows that each matrix saw, (n_matrices,).
    """

    names: list[str]
    sums: NDArray[np.float32]
    counts: NDArray[np.int64]


class Collector:
    """The callback of one context; give it to `Engine.load`, then call `take` after evaluating."""

    def __init__(self) -> None:
        check_layout()
        self._reader = Reader()
        self._inputs: dict[tuple[int, ...], Input] = {}
        self._taken: list[Input] = []
        self._failure: BaseException | None = None
        # llama.cpp keeps only the address: the attribute keeps the callback alive.
        self.callback: Any = llama().ggml_backend_sched_eval_callback(self._called)

    def begin(self) -> None:
        """A graph begins: the addresses of an earlier one's tensors mean nothing any more."""
        self._taken += self._inputs.values()
        self._inputs = {}

    def forget(self) -> None:
        """Nothing has been collected yet."""
        self._inputs, self._taken, self._failure = {}, [], None

    def take(self) -> list[Input]:
        """What has been collected since the last `forget`.

        Raises:
            DotsError: the model computed something that is not finite.
        """
        self.begin()
        if self._failure is not None:
            raise self._failure
        return self._taken

    def _called(self, address: int, asks: bool, _data: Any) -> bool:
        try:
            node = Tensor.from_address(address)
            if asks:
                return self._failure is None and self._wants(node)
            self._collect(node)
        except BaseException as error:  # no exception gets through C: `take` raises it
            self._failure = error
        return self._failure is None

    def _wants(self, node: Tensor) -> bool:
        operation = self._reader.operation(node)
        if operation not in (DENSE, ROUTED):
            return False
        source = node.source(1)
        name = node.source(0).weight_name
        if operation == DENSE and (
            source.ne[1] < FEWEST_TOKENS or source.type != F32 or not name.startswith("blk.")
        ):
            return False
        known = self._inputs.get(_key(node, operation))
        if known is None:
            return True
        known.names.append(name)
        return False

    def _collect(self, node: Tensor) -> None:
        from dotscli.engine.collect_sums import dense_sums, expert_sums

        operation, weight = self._reader.operation(node), node.source(0)
        if operation == ROUTED:
            ids = self._reader.values(node.source(2))[0].copy()  # the next call may overwrite it
            rows = self._reader.values(node.source(1))
            sums, counts = expert_sums(rows, ids, weight.ne[2])
        else:
            sums, counts = dense_sums(self._reader.values(node.source(1)))
        if not all_finite(sums):
            raise DotsError(
                f"the input of {weight.weight_name} is not finite",
                hint="the model's weights are damaged; download or quantize it again",
            )
        self._inputs[_key(node, operation)] = Input([weight.weight_name], sums, counts)


def all_finite(values: NDArray[np.float32]) -> bool:
    """Whether none of them is infinite or NaN."""
    import numpy as np

    return bool(np.isfinite(values).all())


def _key(node: Tensor, operation: bytes) -> tuple[int, ...]:
    """The addresses of what it reads, but not of its weight."""
    return (node.src[1], node.src[2]) if operation == ROUTED else (node.src[1],)
