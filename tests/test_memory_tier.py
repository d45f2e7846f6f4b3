"""A model that doesn't fit into memory: experts are read when they are needed, and nothing changes.

The same model under less and less memory, as a user sees it through the engine. What the backend
does underneath is in test_ram_tier.py, what is decided beforehand in test_load_plan.py.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dotscli.engine import Engine, EngineOptions, HotOptions, has_rpc
from dotscli.engine.available import available_memory
from dotscli.engine.load_plan import LoadPlan, plan_load
from dotscli.engine.main_memory import held, load_sizes
from dotscli.engine.stream import RamFigures
from dotscli.errors import DotsError
from dotscli.hot import heat_store
from dotscli.hot.heat import Heat
from dotscli.hot.memory_use import Verdict
from dotscli.hot.model_cost import file_cost
from dotscli.models.gguf_file import read_gguf
from tests.dots1_gguf import Type, write_model
from tests.engine_kit import ids, run
from tests.transcript import dots, dots_process
from tests.workers import running_worker

N_LAYERS, N_EXPERTS = 6, 20
TOKENS = [3 * n % 200 + 1 for n in range(300)]
SIZES = {"n_layers": N_LAYERS, "n_experts": N_EXPERTS, "n_experts_used": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tier") / "m.gguf"
    return write_model(path, Type.Q4_0, Type.Q8_0, **SIZES)


def plan(model: Path, said: list[str] | None = None, **options: object) -> LoadPlan:
    warn = (lambda _line: None) if said is None else said.append
    gguf = read_gguf(model)
    return plan_load(gguf, EngineOptions(**{"n_ctx": 512} | options), None, warn)  # type: ignore[arg-type]


def memory_for(model: Path, share: float, **options: object) -> int:
    """Main memory in which so much of the routed experts fits."""
    cost = file_cost(read_gguf(model))
    low, high = 1 << 20, 1 << 32
    while high - low > 1000:
        ram = (low + high) // 2
        try:
            enough = plan(model, ram_nbytes=ram, **options).memory.use.experts
        except DotsError:
            enough = 0
        low, high = (low, ram) if enough >= share * cost.experts_nbytes else (ram, high)
    return high


def load(model: Path, share: float, said: list[str] | None = None, **options: object) -> Engine:
    """The model with so much of its experts in memory; 2 is room for a second copy."""
    options = {"n_ctx": 512, "n_threads": 1} | options
    if share < 2 and "ram_nbytes" not in options:
        sizes = {name: options[name] for name in ("n_ctx", "n_ubatch") if name in options}
        options["ram_nbytes"] = memory_for(model, share, **sizes)
    on_log = None if said is None else said.append
    return Engine.load(model, EngineOptions(**options), on_log=on_log)  # type: ignore[arg-type]


def figures(pieces: list) -> RamFigures:  # type: ignore[type-arg]
    found = pieces[-1].stats.ram
    assert isinstance(found, RamFigures)
    return found


@pytest.fixture(scope="module")
def expected(model: Path) -> np.ndarray:
    """What stock computes where it repacks nothing, which rounds differently."""
    with load(model, 1.0) as engine:
        assert engine.tier is None
        return engine.logits(TOKENS)


@pytest.mark.parametrize("n_ubatch", [1, 7, 512])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_logits_are_those_of_stock_to_the_last_bit(
    model: Path, share: float, n_ubatch: int
) -> None:
    with load(model, 1.0, n_ubatch=n_ubatch) as engine:
        expected = engine.logits(TOKENS[:64])
    with load(model, share, n_ubatch=n_ubatch) as engine:
        assert engine.tier is not None
        np.testing.assert_array_equal(engine.logits(TOKENS[:64]), expected)


def test_an_answer_is_the_same_and_has_figures(model: Path) -> None:
    asked = "hello world, how are you? " * 3
    with load(model, 1.0) as engine:
        expected = run(engine, asked, n_predict=30)
    said: list[str] = []
    with load(model, 0.3, said) as engine:
        pieces = run(engine, asked, n_predict=30)
    assert ids(pieces) == ids(expected)
    assert any("of the experts fit, the others are read from the disk" in line for line in said)
    ram = figures(pieces)
    assert ram.n_experts == (N_LAYERS - 1) * N_EXPERTS
    assert 0 < ram.resident_experts <= 0.4 * ram.n_experts
    assert 0 < ram.resident_nbytes <= ram.budget_nbytes
    # of the prompt, llama.cpp computes one token in the last layer
    assert ram.decode_hits + ram.decode_misses == 29 * 4 * (N_LAYERS - 1) + 4
    assert 0 < ram.hit_rate < 1
    assert ram.read_nbytes >= ram.decode_read_nbytes > 0


def test_a_model_that_fits_is_loaded_as_ever(model: Path) -> None:
    said: list[str] = []
    with load(model, 2, said) as engine:
        pieces = run(engine)
    assert said == []
    assert pieces[-1].stats is not None
    assert pieces[-1].stats.ram is None


def test_weights_that_fit_once_and_not_twice_are_not_repacked(model: Path) -> None:
    repacked = "CPU_REPACK"
    said: list[str] = []
    with load(model, 2, said, verbose=True):
        if not any(repacked in line for line in said):
            pytest.skip("this build of llama.cpp repacks nothing on this CPU")
    said.clear()
    with load(model, 1.0, said, verbose=True) as engine:
        assert engine.tier is None
        assert ids(run(engine))
    assert not any(repacked in line for line in said)
    assert not any("more memory" in line for line in said)


def test_without_a_tier_the_page_cache_has_to_do(model: Path, expected: np.ndarray) -> None:
    said: list[str] = []
    with load(model, 0.3, said, tier=False) as engine:
        assert engine.tier is None
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)
    assert any("again and again, which is slow (--no-tier)" in line for line in said)


def test_too_little_memory_is_said_with_its_parts_before_anything_is_loaded(model: Path) -> None:
    with pytest.raises(DotsError, match=r"needs .* of main memory with a context of 512") as caught:
        load(model, 0.3, ram_nbytes=memory_for(model, 0.01) - (1 << 20))
    assert "experts of one layer" in caught.value.message
    assert caught.value.hint == "use a smaller --ctx-size, or -ctk q8_0 -ctv q8_0"


def test_a_context_that_nobody_asked_for_is_made_to_fit(model: Path) -> None:
    ram = memory_for(model, 0.2, n_ctx=1024)
    said: list[str] = []
    found = plan(model, said, n_ctx=0, ram_nbytes=ram)
    assert 512 <= found.n_ctx < 2048
    assert found.tiered
    assert any("the context is" in line for line in said)


@pytest.mark.parametrize(
    ("options", "n_tiered"),
    [
        ({}, N_LAYERS - 1),
        ({"cpu_moe": True}, N_LAYERS - 1),
        ({"n_cpu_moe": 3}, N_LAYERS - 1),
        ({"override_tensor": ("ffn_down_exps=CPU",)}, N_LAYERS - 1),
    ],
)
def test_experts_that_options_leave_to_the_cpu_are_tiered_too(
    options: dict[str, object], n_tiered: int, model: Path, expected: np.ndarray
) -> None:
    with load(model, 0.5, **options) as engine:
        assert engine.tier is not None
        assert len(engine.tier.tensors) == 3 * n_tiered
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)


def test_hot_experts_and_the_tier_work_together(
    model: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    hot = HotOptions(nbytes=1 << 20, device="CPU", guard=False, folder=tmp_path)
    with load(model, 0.4, hot=hot) as engine:
        assert engine.tier is not None
        assert engine.hot is not None
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)
        pieces = run(engine, n_predict=30)
        assert pieces[-1].stats is not None
        assert pieces[-1].stats.hot is not None
        assert figures(pieces).n_experts == (N_LAYERS - 1) * N_EXPERTS
    assert list(tmp_path.iterdir()), "heat is kept"


def test_heat_is_kept_and_the_next_run_begins_with_it(model: Path, tmp_path: Path) -> None:
    hot = HotOptions(folder=tmp_path)
    with load(model, 0.3, hot=hot) as engine:
        run(engine, n_predict=40)
    path = heat_store.file_of(model, tmp_path)
    assert heat_store.load(path).layers
    # what is used most is read first
    used = np.zeros(N_EXPERTS)
    used[[3, 7]] = 1000
    heat_store.save(Heat(dict.fromkeys(range(1, N_LAYERS), used)), path)
    with load(model, 0.3, hot=hot) as engine:
        assert engine.tier is not None
        pieces = run(engine, n_predict=1)
        assert figures(pieces).resident_experts >= 2 * (N_LAYERS - 1)


def test_memory_that_others_take_is_given_back(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dotscli.engine.hot import tier as module

    free = available_memory()
    with load(model, 0.9) as engine:
        assert engine.tier is not None
        run(engine, n_predict=20)
        before = engine.tier.counters().resident_nbytes
        scarce = type(free)(nbytes=0, total=free.total)
        monkeypatch.setattr(module, "available_memory", lambda: scarce)
        for _ in range(50):
            engine.tier._ended.wait(0.1)
            if engine.tier.counters().resident_nbytes < before / 2:
                break
        assert engine.tier.counters().resident_nbytes < before / 2
        monkeypatch.undo()
        assert ids(run(engine, n_predict=5))


def test_a_file_that_ends_while_it_is_in_use_is_one_line(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(model, path)
    with load(path, 0.25) as engine:
        run(engine, n_predict=2)
        with path.open("r+b") as file:
            file.truncate(100_000)
        with pytest.raises(DotsError, match="experts can't be read any more: ") as caught:
            for _ in range(20):
                run(engine, n_predict=20)
                engine.forget()
        assert "dots verify" in str(caught.value.hint)


def test_prompt_says_what_the_tier_did(model: Path) -> None:
    args = ("prompt", "-m", model, "hello", "-n", "9", "-c", "512", "-t", "1", "--temp", "0")
    done = dots(*args, "--ram", str(memory_for(model, 0.4)), "--json", "--stats")
    assert "the others are read from the disk when they are needed" in done.stderr
    assert " · RAM " in done.stderr
    ram = done.json["ram"]
    assert ram["n_experts"] == (N_LAYERS - 1) * N_EXPERTS
    assert 0 < ram["resident_experts"] < ram["n_experts"]
    assert 0 < ram["hit_rate"] <= 1
    assert 0 < 8 * ram["read_bytes_per_token"] <= ram["read_bytes"]
    assert dots(*args, "--json").json["ram"] is None


@pytest.mark.skipif(not has_rpc(), reason="this llama.cpp was built without RPC")
def test_layers_on_another_machine_have_their_experts_there(model: Path) -> None:
    """Not in main memory, where nothing was planned for them."""
    words = ("-m", model, "-c", "512", "--hot", "off", "-ngl", "3", "-n", "3", "-v", "hello")
    gguf = read_gguf(model)
    cost, options = file_cost(gguf), EngineOptions(n_ctx=512, n_gpu_layers=3)
    what = held(gguf, cost, options, gpu=True, hot=None)
    assert len(what.cold) == 3
    sizes = (load_sizes(cost, what, options, n << 20, 0) for n in range(1, 1 << 12))
    ram = str(next(s for s in sizes if s.memory.verdict is Verdict.TIER).memory.use.total)
    with running_worker("--device", "CPU", "--threads", "1") as worker:
        done = dots_process("prompt", *words, "--ram", ram, "--rpc", worker.address)
    assert done.returncode == 0, done.stderr
    there = re.search(rb"Hot model buffer size = +([\d.]+) MiB", done.stderr)
    assert there is not None
    pages = len(what.cold) * 3 * 2 * 4096 * N_EXPERTS
    assert float(there[1]) * 2**20 <= sum(what.cold.values()) + pages
