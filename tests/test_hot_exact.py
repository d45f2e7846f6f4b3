"""Hot experts change where a token is computed and nothing else: logits equal to the last bit.

The hot device here is a second CPU backend, which has the kernels of stock llama.cpp, or a device
that lags behind and fails on demand. Stock means llama.cpp without extra buffer types, so without
weight repacking.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp")

from dotscli.errors import DotsError  # noqa: E402  # after the check that there is a llama_cpp
from dotscli.hot.backend import library, plugin  # noqa: E402
from dotscli.hot.backend.plugin import HotModel  # noqa: E402
from tests.dots1_gguf import Run, Type, batches, log, write_model  # noqa: E402
from tests.hot_devices import (  # noqa: E402
    LaggingDevice,
    attach_threadpool,
    has_rpc,
    rpc_device,
    threadpool,
)

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

SIZES = (1, 2, 7, 33, 512, 1)
N_EXPERTS = 20
# up and gate, down: what the recipes give the routed experts, and the plain types.
TYPES = [
    (Type.Q4_K, Type.Q5_0), (Type.Q4_K, Type.Q8_0), (Type.Q4_K, Type.Q5_1), (Type.Q5_K, Type.Q5_1),
    (Type.Q6_K, Type.Q8_0), (Type.Q4_0, Type.Q4_0), (Type.Q4_0, Type.Q4_1), (Type.Q8_0, Type.Q8_0),
    (Type.IQ4_NL, Type.IQ4_NL), (Type.IQ4_XS, Type.IQ4_NL), (Type.MXFP4, Type.MXFP4),
    (Type.F32, Type.F32), (Type.F16, Type.F16), (Type.BF16, Type.BF16),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with log():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five MoE layers of 20 experts, Q4_K and Q5_0."""
    path = tmp_path_factory.mktemp("hot") / "model.gguf"
    return write_model(
        path, Type.Q4_K, Type.Q5_0, n_layers=6, n_experts=N_EXPERTS, n_experts_used=4
    )


@pytest.fixture(scope="module")
def stock(model: Path) -> list[np.ndarray]:
    with Run(model) as run:
        return [run.decode(batch) for batch in batches(SIZES)]


def opened(device: str | None = "CPU") -> HotModel:
    return plugin.backend().open(device)


def make_resident(hot: HotModel, percent: int, seed: int = 3) -> None:
    """Random experts of every layer on the device, so many percent of them."""
    rng = np.random.default_rng(seed)
    for layer in hot.layers():
        n_slots = layer.n_experts * percent // 100
        hot.reserve(layer.layer, n_slots)
        hot.set_residents(layer.layer, rng.permutation(layer.n_experts)[:n_slots].tolist())


def assert_same(run: Run, expected: list[np.ndarray], sizes: tuple[int, ...] = SIZES) -> None:
    for batch, logits in zip(batches(sizes), expected, strict=True):
        np.testing.assert_array_equal(run.decode(batch), logits, f"a batch of {len(batch)}")


def test_the_backend_works_here() -> None:
    assert plugin.unavailable() == ""


@pytest.mark.parametrize("types", TYPES, ids=lambda t: f"{t[0].name}-{t[1].name}")
def test_every_type_at_every_residency(types: tuple[Type, Type], tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.gguf", *types, n_layers=3, n_experts=N_EXPERTS, n_experts_used=4
    )
    with Run(path) as run:
        expected = [run.decode(batch) for batch in batches(SIZES)]
    assert np.isfinite(expected[-1]).all()
    for percent in (0, 10, 50, 100):
        hot = opened()
        with Run(path, hot) as run:
            make_resident(hot, percent)
            assert_same(run, expected)
            counters = hot.counters()
            assert (counters.decode_hits + counters.prefill_hits > 0) == (percent > 0)
            assert (counters.decode_misses + counters.prefill_misses > 0) == (percent < 100)
            assert hot.messages() == ()


def test_k_quants_in_all_three_weights(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.gguf", Type.Q4_K, Type.Q6_K, n_layers=3, n_ff_expert=256, n_experts=N_EXPERTS
    )
    with Run(path) as run:
        expected = [run.decode(batch) for batch in batches(SIZES)]
    hot = opened()
    with Run(path, hot) as run:
        make_resident(hot, 50)
        assert_same(run, expected)


def test_weights_that_are_read_and_not_mapped(model: Path, stock: list[np.ndarray]) -> None:
    hot = opened()
    with Run(model, hot, use_mmap=False) as run:
        make_resident(hot, 50)
        assert_same(run, stock)


def test_two_threads(model: Path) -> None:
    """Attention itself rounds differently on another number of threads: stock needs two as well."""
    sizes = (1, 2, 33, 1)
    with Run(model, n_threads=2) as run:
        expected = [run.decode(batch) for batch in batches(sizes)]
    hot = opened()
    with Run(model, hot, n_threads=2) as run:
        make_resident(hot, 50)
        assert_same(run, expected, sizes)


def test_a_prompt_of_which_no_logits_are_wanted(model: Path) -> None:
    """The last layer then has not a single token."""
    hot = opened()
    with Run(model) as plain, Run(model, hot) as run:
        make_resident(hot, 50)
        for either in (plain, run):
            either.decode([1, 2, 3], outputs=False)
        np.testing.assert_array_equal(run.decode([4]), plain.decode([4]))


def test_a_warm_up_that_uses_every_expert(model: Path) -> None:
    hot = opened()
    with Run(model) as plain, Run(model, hot) as run:
        make_resident(hot, 50)
        for warm_up in (False, True, False):
            for batch in ([1], [2, 3]):
                for either in (plain, run):
                    llama_cpp.llama_set_warmup(either.ctx, warm_up)
                np.testing.assert_array_equal(run.decode(batch), plain.decode(batch))
        n_counted = {int(decode.sum()) for decode, _ in hot.heat().values()}
    assert n_counted == {2 * 3 * 4}


def test_one_threadpool_for_all(model: Path, stock: list[np.ndarray]) -> None:
    hot = opened()
    with threadpool(2) as pool:
        plugin.backend().set_threadpool(pool)
        with Run(model, hot) as run:
            plugin.backend().set_threadpool(None)
            attach_threadpool(run.ctx, pool)
            make_resident(hot, 50)
            assert_same(run, stock)


def test_two_thousand_tokens_while_experts_are_exchanged(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", Type.Q4_0, n_layers=4, n_experts=N_EXPERTS, n_ff=64)
    tokens = next(batches([2000]))
    hot, stop, n_exchanges = opened(), threading.Event(), 0

    def exchange() -> None:
        nonlocal n_exchanges
        rng = np.random.default_rng(0)
        while not stop.is_set():
            layer = int(rng.integers(1, 4))
            slot, expert = int(rng.integers(0, 8)), int(rng.integers(-1, N_EXPERTS))
            if expert not in hot.residents(layer):
                hot.place(layer, slot, expert)
                n_exchanges += 1
            stop.wait(0.0005)

    with Run(path, n_ctx=2048) as plain, Run(path, hot, n_ctx=2048) as run:
        make_resident(hot, 40)
        other = threading.Thread(target=exchange)
        other.start()
        try:
            for token in tokens:
                np.testing.assert_array_equal(run.decode([token]), plain.decode([token]))
        finally:
            stop.set()
            other.join()
        counters = hot.counters()
    assert n_exchanges > 500
    assert min(counters.decode_hits, counters.decode_misses) > 2000


@pytest.mark.parametrize("name", ["ffn_moe_up", "ffn_moe_gate", "ffn_moe_swiglu", "ffn_moe_down"])
def test_a_callback_that_looks_into_the_chain(
    name: str, model: Path, stock: list[np.ndarray]
) -> None:
    seen = []

    def look(node: str, ask: bool) -> bool:
        if not ask:
            seen.append(node)
        return node.startswith(name)

    hot = opened()
    with Run(model, hot, eval_callback=look) as run:
        make_resident(hot, 50)
        assert_same(run, stock)
    assert len(seen) == 5 * len(SIZES)


def test_two_contexts_of_one_model_at_once(model: Path, stock: list[np.ndarray]) -> None:
    hot, errors = opened(), []
    with Run(model, hot) as first, Run(model, beside=first) as second:
        make_resident(hot, 50)

        def check(run: Run) -> None:
            try:
                assert_same(run, stock)
            except AssertionError as error:
                errors.append(error)

        threads = [threading.Thread(target=check, args=(run,)) for run in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors


@pytest.mark.parametrize("percent", [10, 50, 100])
def test_a_device_that_lags(
    percent: int, lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    hot = opened(lagging.name)
    with Run(model, hot) as run:
        make_resident(hot, percent)
        assert_same(run, stock)
        assert hot.messages() == ()


def test_pinned_memory_where_the_device_has_it(
    lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    before = lagging.n_pinned_buffers()
    with lagging.with_pinned_memory():
        hot = opened(lagging.name)
        with Run(model, hot) as run:
            make_resident(hot, 50)
            assert_same(run, stock)
    assert lagging.n_pinned_buffers() > before + 1


def test_a_device_that_fails_is_left_alone(
    lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    hot = opened(lagging.name)
    with Run(model, hot) as run:
        make_resident(hot, 100)
        with lagging.failing(after=7):
            assert_same(run, stock)
        messages = hot.messages()
        assert len(messages) == 5
        assert messages[0] == "layer 3 stays on the CPU: the hot device failed to compute"
        assert [layer.off for layer in hot.layers()] == [True] * 5
        assert hot.messages() == ()


def test_a_device_without_memory_at_load(
    lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    hot = opened(lagging.name)
    with Run(model, hot) as run:
        with lagging.refusing_memory(after=4):
            hot.reserve(1, 10)
            with pytest.raises(DotsError, match=r"layer 2: no device memory for \d+ bytes"):
                hot.reserve(2, 10)
        hot.set_residents(1, range(10))
        assert_same(run, stock)
        assert [layer.n_slots for layer in hot.layers()] == [10, 0, 0, 0, 0]


@pytest.mark.parametrize(("after", "said"), [(0, 5), (1, 1)], ids=["decoding", "long prompts"])
def test_a_device_without_memory_later(
    after: int, said: int, lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    hot = opened(lagging.name)
    with Run(model, hot) as run:
        make_resident(hot, 100)
        with lagging.refusing_memory(after=after):
            assert_same(run, stock)
        assert len(hot.messages()) == said


@pytest.mark.parametrize("n_used", [1, 4])
def test_dense_layers_and_hot_experts_on_one_device(
    n_used: int, lagging: LaggingDevice, tmp_path: Path
) -> None:
    """Here activations arrive as copies, and with one expert a token llama.cpp lets the result take
    over their memory: each side must have read them before the other writes."""
    path = write_model(
        tmp_path / "m.gguf", Type.Q4_0,
        n_layers=4, n_ff_expert=288, n_experts=8, n_experts_used=n_used,
    )  # fmt: skip
    with Run(path) as run:
        expected = [run.decode(batch) for batch in batches(SIZES)]
    hot = opened(lagging.name)
    with Run(path, hot, dense_on=lagging.name, op_offload=False) as run:
        make_resident(hot, 50)
        assert_same(run, expected)


def test_a_device_over_the_network(model: Path, stock: list[np.ndarray]) -> None:
    if not has_rpc():
        pytest.skip("this llama.cpp has no RPC")
    with rpc_device() as name:
        hot = opened(name)
        with Run(model, hot) as run:
            make_resident(hot, 50)
            assert_same(run, stock)
            assert hot.counters().decode_hits > 0
            assert hot.messages() == ()
        hot = opened(name)
        with Run(model, hot, dense_on=name, op_offload=False) as run:
            make_resident(hot, 10)
            assert_same(run, stock)


def test_the_reference_can_tell_a_difference(model: Path, tmp_path: Path) -> None:
    """One other seed in the experts' weights shows: the comparisons above are worth something."""
    other = write_model(
        tmp_path / "o.gguf", Type.Q4_K, Type.Q5_0, seed=1,
        n_layers=6, n_experts=N_EXPERTS, n_experts_used=4,
    )  # fmt: skip
    with Run(model) as a, Run(other) as b:
        assert (a.decode([1]) != b.decode([1])).all()
