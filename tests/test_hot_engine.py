"""Hot experts through the engine and the command: what a user gets, and that nothing else changes.

The device is a second CPU backend, with the kernels of stock llama.cpp without repacked weights.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dotscli.catalog import nano_checkpoint
from dotscli.engine import Engine, EngineOptions, HotOptions
from dotscli.engine import load as engine_load
from dotscli.engine.devices import Device, registered
from dotscli.engine.hot import experts as engine_hot
from dotscli.engine.hot.choice import Decision, choose
from dotscli.errors import DotsError
from dotscli.hot import heat_store
from dotscli.hot.backend import library
from dotscli.hot.heat import Heat
from dotscli.hot.kept_heat import HALF_LIFE, KeptHeat
from dotscli.hot.model_cost import ModelCost, file_cost
from dotscli.models.gguf_file import GgufFile, read_gguf
from dotscli.models.identity import fingerprint
from dotscli.quantize import quantize_checkpoint
from tests.dots1_gguf import Type, write_model
from tests.engine_kit import ids, run
from tests.hot_devices import has_rpc
from tests.transcript import ROOT, dots, environment

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

MIB = 1 << 20
N_EXPERTS, N_USED = 20, 4
MOE_LAYERS = range(1, 6)
TOKENS = np.random.default_rng(2).integers(0, 256, 90).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five MoE layers of 20 experts, Q4_K and Q5_0: 72.5 KiB each."""
    path = tmp_path_factory.mktemp("hot") / "model.gguf"
    return write_model(
        path, Type.Q4_K, Type.Q5_0, n_layers=6, n_experts=N_EXPERTS, n_experts_used=N_USED
    )


@pytest.fixture(autouse=True)
def _same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock without repacked weights, which round differently."""
    monkeypatch.setattr("dotscli.engine.load.may_crash_with_amx", lambda: True)


@pytest.fixture
def gguf(model: Path) -> GgufFile:
    return read_gguf(model)


@pytest.fixture
def cost(gguf: GgufFile) -> ModelCost:
    return file_cost(gguf)


def load(
    model: Path, hot: HotOptions | None, said: list[str] | None = None, **options: object
) -> Engine:
    options = {"n_ctx": 512, **options}
    log = None if said is None else said.append
    return Engine.load(model, EngineOptions(n_threads=1, hot=hot, **options), on_log=log)  # type: ignore[arg-type]


def on_cpu(nbytes: int, **more: object) -> HotOptions:
    return HotOptions(nbytes=nbytes, device="CPU", **({"adapt": False, "guard": False} | more))  # type: ignore[arg-type]


def heat_file(path: Path, counts: Callable[[int], float]) -> Path:
    values = np.array([counts(expert) for expert in range(N_EXPERTS)])
    heat_store.save(Heat(dict.fromkeys(MOE_LAYERS, values)), path)
    return path


# Answers


@pytest.mark.parametrize("n_batch", [1, 33, 512])
@pytest.mark.parametrize("nbytes", [MIB, 1 << 30])
def test_logits_are_those_of_stock_to_the_last_bit(model: Path, n_batch: int, nbytes: int) -> None:
    with load(model, None, n_batch=n_batch) as engine:
        expected = engine.logits(TOKENS)
    with load(model, on_cpu(nbytes), n_batch=n_batch) as engine:
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)


def test_an_answer_is_that_of_stock_and_has_figures(model: Path) -> None:
    with load(model, None) as engine:
        expected = run(engine, n_predict=40)
    assert expected[-1].stats is not None
    assert expected[-1].stats.hot is None
    with load(model, on_cpu(MIB)) as engine:
        pieces = run(engine, n_predict=40)
        stats = pieces[-1].stats
    assert ids(pieces) == ids(expected)
    assert stats is not None
    hot = stats.hot
    assert hot is not None
    assert (hot.device, hot.n_experts, hot.resident_experts) == ("CPU", 100, MIB // (72.5 * 1024))
    assert 0 < hot.hit_rate < 1
    pairs = hot.decode_hits + hot.decode_misses + hot.prefill_hits + hot.prefill_misses
    evaluated = stats.prompt_tokens + stats.completion_tokens - 1
    # llama.cpp computes the last layer only for the prompt's last token
    assert pairs == N_USED * (len(MOE_LAYERS) * evaluated - stats.prompt_tokens + 1)
    assert hot.uploaded_nbytes == hot.resident_experts * 72.5 * 1024
    assert engine.stats.hot == hot  # also when the model is freed


def test_figures_are_of_the_last_answer(model: Path) -> None:
    with load(model, on_cpu(MIB)) as engine:
        run(engine, n_predict=40)
        short = run(engine, "x", n_predict=2)[-1].stats
    assert short is not None
    assert short.hot is not None
    assert short.hot.decode_hits + short.hot.decode_misses <= 3 * N_USED * len(MOE_LAYERS)


def test_everybody_resident_is_a_hit_rate_of_one(model: Path) -> None:
    with load(model, on_cpu(1 << 30, adapt=True)) as engine:
        hot = run(engine)[-1].stats
    assert hot is not None
    assert hot.hot is not None
    assert (hot.hot.hit_rate, hot.hot.resident_share, hot.hot.layers_off) == (1.0, 1.0, 0)


@pytest.mark.skipif(
    not (nano_checkpoint() / "config.json").is_file(), reason="no nano checkpoint here"
)
def test_the_nano_model_answers_the_same(tmp_path: Path) -> None:
    path = tmp_path / "nano.gguf"
    for _ in quantize_checkpoint(nano_checkpoint(), path):
        pass
    answers = []
    for hot in (None, on_cpu(MIB)):
        with load(path, hot, n_batch=32) as engine:
            answers.append((engine.logits(TOKENS[:40]), ids(run(engine, "What is dots?"))))
    np.testing.assert_array_equal(answers[1][0], answers[0][0])
    assert answers[1][1] == answers[0][1]


# On and off


OFF = """
import sys
from dotscli.cli.app import run
from dotscli.terminal.terminal import Terminal
status = run(sys.argv[1:], Terminal.system())
print(status, sorted(name for name in sys.modules if name.startswith("dotscli.hot.p")))
print(any("libdots_hot" in line for line in open("/proc/self/maps")))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.parametrize("words", [("--hot", "off"), ()])
def test_off_opens_no_library(model: Path, words: tuple[str, ...]) -> None:
    """So nothing is registered and llama.cpp is as it came. Without a GPU auto is off, too."""
    if not words and any(device.type == "GPU" for device in registered()):
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-c", OFF, "prompt", "-m", str(model), "hi", "-n", "2", *words],
        env=environment(), capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-2:] == ["0 ['dotscli.hot.placement']", "False"]
    assert done.stderr == ""


def test_a_trace_of_what_is_routed(model: Path, tmp_path: Path) -> None:
    """As much as the counts say, as bench/hot/routing.py reads it; nothing is replaced."""
    trace, places = tmp_path / "t.trace", {"XDG_DATA_HOME": str(tmp_path)}
    words = ("prompt", "-m", model, "hi", "-n", "4", "--heat-trace", trace)
    hot = ("--hot", "1M", "--hot-device", "CPU")
    assert dots(*words, *hot, environ=places).exit_status == 0
    found = Heat()
    for layer, routed in heat_store.read_trace(trace):
        found.add({layer: np.bincount(routed.reshape(-1), minlength=N_EXPERTS)})
    kept = heat_store.load(heat_store.file_of(model, tmp_path / "dots" / "heat"))
    assert {k: v.tolist() for k, v in found.layers.items()} == {
        k: np.round(v).tolist() for k, v in kept.layers.items()
    }
    before = trace.read_bytes()
    again = dots(*words, *hot, environ=places)
    assert again.exit_status == 1
    assert "already exists" in again.stderr
    assert trace.read_bytes() == before
    trace.unlink()
    off = dots(*words, "--hot", "off", environ=places)
    assert off.exit_status == 2
    assert "--heat-trace needs hot experts" in off.stderr
    nowhere = dots(*words[:-1], tmp_path / "no" / "t", *hot, environ=places)
    assert nowhere.exit_status == 1
    assert "can't write the trace" in nowhere.stderr


def test_off_in_the_environment_and_over_it(model: Path, tmp_path: Path) -> None:
    words = ("prompt", "-m", model, "hi", "-n", "2", "--json", "--hot-device", "CPU")
    places = {"XDG_DATA_HOME": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOTS_HOT", "off")
        assert dots(*words, environ=places).json["hot"] is None
        assert dots(*words, "--hot", "1M", environ=places).json["hot"]["resident_experts"] == 14


def test_who_asked_hears_why_not(
    gguf: GgufFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def reasons(options: EngineOptions) -> list[str]:
        said: list[str] = []
        assert choose(gguf, options, only_cpu, said.append)[1] is None
        return said

    only_cpu = [device for device in registered() if device.type == "CPU"]
    assert reasons(EngineOptions(hot=HotOptions())) == []
    [line] = reasons(EngineOptions(hot=HotOptions(nbytes=MIB)))
    assert line.startswith("hot experts are off: llama.cpp sees no GPU here")
    [line] = reasons(EngineOptions(hot=HotOptions(heat=tmp_path / "heat.json")))
    assert line.startswith("hot experts are off: llama.cpp sees no GPU here")
    [line] = reasons(EngineOptions(hot=on_cpu(1000)))
    assert line == "hot experts are off: a single expert takes 72.5 KiB"
    monkeypatch.setattr("dotscli.hot.backend.plugin.unavailable", lambda: "ggml 9.9 is not 0.25")
    [line] = reasons(EngineOptions(hot=on_cpu(MIB)))
    assert line == "hot experts are off: ggml 9.9 is not 0.25"


def test_a_backend_that_refuses_is_a_warning_and_stock(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DotsError("hot experts: another model is being loaded")

    monkeypatch.setattr("dotscli.hot.backend.plugin.HotBackend.open", refuse)
    said: list[str] = []
    with load(model, on_cpu(MIB), said) as engine:
        assert engine.hot is None
        assert len(ids(run(engine))) > 0
    assert said == ["hot experts are off: hot experts: another model is being loaded"]


def test_a_device_without_memory_is_a_warning_and_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object, layer: int, _n_slots: int) -> None:
        raise DotsError(f"hot experts, layer {layer}: no device memory for 12345 bytes")

    with load(model, None) as engine:
        expected = engine.logits(TOKENS)
    monkeypatch.setattr("dotscli.hot.backend.plugin.HotModel.reserve", refuse)
    said: list[str] = []
    with load(model, on_cpu(MIB), said) as engine:
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)
    assert said == [
        "hot experts, layer 1: no device memory for 12345 bytes (5 layers in all); "
        "their experts stay on the CPU"
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--hot", "1M", "--hot-device", "CUDA7"), "--hot-device 'CUDA7': no such device"),
        (("--hot-device", "CPU"), "no memory of its own"),
        (("--hot", "lots"), "invalid --hot 'lots'"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(
    model: Path, words: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    done = dots("prompt", "-m", model, "hi", *words, environ={"XDG_DATA_HOME": str(tmp_path)})
    assert done.exit_status == 2
    first, hint = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert line in first
    assert hint.startswith("hint: ")


# Placement


def gpu(free: int) -> list[Device]:
    """The CPU, said to be a GPU with so much free memory."""
    [cpu] = [device for device in registered() if device.type == "CPU"]
    return [dataclasses.replace(cpu, type="GPU", free_bytes=free, total_bytes=free)]


def free_for(cost: ModelCost, experts_nbytes: int) -> int:
    """Free memory with room for all dense weights, a cache of 512 tokens and so many experts."""
    needed = cost.dense_nbytes + cost.compute_nbytes(512, "f16", "f16") + experts_nbytes
    return (needed + len(cost.layers) * cost.kv_layer_nbytes(512, "f16", "f16")) * 8 // 7


def test_auto_fills_what_is_free_but_for_a_margin(
    model: Path, cost: ModelCost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eighth stays free, as `dots plan` says."""
    free = free_for(cost, cost.experts_nbytes // 2)
    left = 3 * MIB + free // 8  # when weights and cache are there
    monkeypatch.setattr(engine_load, "registered", lambda: gpu(free))
    monkeypatch.setattr(engine_hot, "registered", lambda: gpu(left))
    with load(model, HotOptions(adapt=False, guard=False)) as engine:
        figures = run(engine)[-1].stats
    assert figures is not None
    assert figures.hot is not None
    assert figures.hot.resident_experts == 3 * MIB // cost.moe_layers[0].expert_nbytes
    assert figures.hot.hit_rate > 0


def test_more_than_there_is_ends_at_the_margin(
    model: Path, cost: ModelCost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_load, "registered", lambda: gpu(8 * MIB))
    monkeypatch.setattr(engine_hot, "registered", lambda: gpu(3 * MIB))
    said: list[str] = []
    with load(model, on_cpu(4 * MIB), said) as engine:
        assert engine.hot is not None
        resident = engine.hot.figures().resident_experts
    assert resident == 2 * MIB // cost.moe_layers[0].expert_nbytes
    assert said == ["CPU has only 2.00 MiB free, 4.00 MiB were requested for hot experts"]


def test_auto_and_a_device_that_holds_all_or_nothing(gguf: GgufFile, cost: ModelCost) -> None:
    options = EngineOptions(n_ctx=512, hot=HotOptions())
    said: list[str] = []
    assert choose(gguf, options, gpu(1 << 30), said.append) == Decision(options)
    [first] = gpu(free_for(cost, cost.experts_nbytes // 2))
    two = [first, dataclasses.replace(first, name="CPU1")]
    assert choose(gguf, options, two, said.append) == Decision(options)
    assert choose(gguf, options, two[:1], said.append)[1] is not None
    found, choice, _ = choose(gguf, options, gpu(MIB), said.append)
    assert choice is None
    assert found.n_gpu_layers == 0
    room = cost.output_nbytes + cost.compute_nbytes(512, "f16", "f16")
    room += cost.layers[-1].dense_nbytes + 2 * cost.kv_layer_nbytes(512, "f16", "f16")
    found, choice, _ = choose(gguf, options, gpu(room * 8 // 7), said.append)
    assert choice is None
    assert found.n_gpu_layers == 2  # the output counts as one
    assert found.override_tensor == (r"blk\.(1|2|3|4|5)\.ffn_(up|down|gate)_exps=CPU",)
    assert said == []


@pytest.mark.parametrize(
    "given", [{"cpu_moe": True}, {"n_cpu_moe": 2}, {"override_tensor": ("exps=CPU",)}]
)
def test_auto_leaves_experts_to_whoever_places_them(
    gguf: GgufFile, given: dict[str, object]
) -> None:
    options = EngineOptions(hot=HotOptions(), **given)  # type: ignore[arg-type]
    assert choose(gguf, options, gpu(20 * MIB), print) == Decision(options)


def test_patterns_of_the_user_come_first(model: Path) -> None:
    with load(model, None) as engine:
        expected = engine.logits(TOKENS)
    with load(model, on_cpu(1 << 30), n_cpu_moe=2, override_tensor=(r"blk\.4\..*_exps=CPU",)) as e:
        assert e.hot is not None
        assert sorted(e.hot.residents()) == [2, 3, 5]
        np.testing.assert_array_equal(e.logits(TOKENS), expected)


def test_without_heat_layers_get_equally_many(model: Path) -> None:
    with load(model, on_cpu(MIB)) as engine:
        assert engine.hot is not None
        found = engine.hot.residents()
    assert sorted(len(experts) for experts in found.values()) == [2, 3, 3, 3, 3]


# Heat


def test_counts_are_kept_and_used_next_time(model: Path, cost: ModelCost, tmp_path: Path) -> None:
    hot = on_cpu(MIB, folder=tmp_path)
    totals, rates = [], []
    for _ in range(3):
        with load(model, hot) as engine:
            figures = run(engine, n_predict=60)[-1].stats
            assert figures is not None
            assert figures.hot is not None
            rates.append(figures.hot.hit_rate)
            assert engine.hot is not None
            residents = engine.hot.residents()
        [path] = tmp_path.iterdir()
        assert path.stem == fingerprint(model)
        totals.append(sum(counts.sum() for counts in heat_store.load(path).layers.values()))
    assert 0 < totals[0] < totals[1] < totals[2]
    assert rates[1] > rates[0]
    # up to the knee round by round: with two or three slots, each layer's hottest
    heat = heat_store.load(path)
    for layer in MOE_LAYERS:
        assert set(residents[layer]) == set(heat.hottest(layer, len(residents[layer])))


def test_given_heat_places_the_experts_and_is_not_written(model: Path, tmp_path: Path) -> None:
    given = heat_file(tmp_path / "given.json", lambda expert: 1000.0 if expert in (7, 11) else 1)
    before = given.read_bytes()
    with load(model, on_cpu(MIB, heat=given, folder=tmp_path / "kept")) as engine:
        assert engine.hot is not None
        assert all({7, 11} <= set(experts) for experts in engine.hot.residents().values())
        run(engine)
    assert given.read_bytes() == before
    [kept] = (tmp_path / "kept").iterdir()
    assert heat_store.load(kept).layers[1][7] > 900


def test_nothing_computed_is_nothing_kept(model: Path, tmp_path: Path) -> None:
    load(model, on_cpu(MIB, folder=tmp_path / "kept")).close()
    assert not (tmp_path / "kept").exists()


def test_heat_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    given = tmp_path / "other.json"
    heat_store.save(Heat({1: np.ones(8)}), given)
    with pytest.raises(DotsError, match=r"other\.json: the heat of layer 1 covers 8 experts"):
        load(model, on_cpu(MIB, heat=given))
    heat_store.save(Heat({40: np.ones(N_EXPERTS)}), given)
    with pytest.raises(DotsError, match="heat of another model"):
        load(model, on_cpu(MIB, heat=given))


def test_a_damaged_heat_file_is_left_alone_with_a_warning(model: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{fingerprint(model)}.json"
    path.write_text("{")
    said: list[str] = []
    with load(model, on_cpu(MIB, folder=tmp_path), said) as engine:
        assert len(ids(run(engine))) > 0
    assert len(said) == 1
    assert said[0].startswith(
        f"the saved heat is neither used nor updated: {path} is not a heat file"
    )
    assert path.read_text() == "{"


def test_a_folder_that_cannot_be_written_is_a_warning(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with load(model, on_cpu(MIB, folder=tmp_path / "file"), said) as engine:
        run(engine)
    assert len(said) == 1
    assert "can't save the heat" in said[0]


def test_old_counts_fade_and_given_ones_do_not_weigh_for_ever(
    cost: ModelCost, tmp_path: Path
) -> None:
    path = tmp_path / "heat.json"
    given = heat_file(tmp_path / "given.json", lambda expert: 1e9)
    KeptHeat(cost, path, given).save({1: np.zeros(N_EXPERTS)}, n_tokens=1)
    first = heat_store.load(path).layers[1]
    assert first.sum() == pytest.approx(HALF_LIFE * N_USED, rel=1e-3)
    KeptHeat(cost, path, None).save({1: np.ones(N_EXPERTS)}, n_tokens=HALF_LIFE)
    np.testing.assert_allclose(heat_store.load(path).layers[1], first / 2 + 1, rtol=1e-3)


# Adaptation


def wrong_at_first(model: Path, folder: Path) -> Path:
    """Heat that says the contrary of what the model will do."""
    with load(model, on_cpu(MIB, folder=folder)) as engine:
        engine.logits(TOKENS)
    [kept] = folder.iterdir()
    heat = heat_store.load(kept)
    contrary = {layer: counts.max() - counts for layer, counts in heat.layers.items()}
    path = folder / "contrary.json"
    heat_store.save(Heat(contrary), path)
    return path


def test_adaptation_changes_residents_and_no_logits(model: Path, tmp_path: Path) -> None:
    with load(model, None, n_batch=1) as engine:
        expected = engine.logits(TOKENS)
    hot = on_cpu(2 * MIB, heat=wrong_at_first(model, tmp_path), adapt=True)
    with load(model, hot, n_batch=1) as engine:
        assert engine.hot is not None
        first = engine.hot.residents()
        rates = []
        for _ in range(12):
            engine.hot.mark()
            np.testing.assert_array_equal(engine.logits(TOKENS), expected)
            rates.append(engine.hot.figures().hit_rate)
            engine.hot.adapt()
        last = engine.hot.residents()
    assert last != first
    assert {layer: len(experts) for layer, experts in last.items()} == {
        layer: len(experts) for layer, experts in first.items()
    }
    assert rates[-1] > rates[0]


def test_it_goes_on_by_itself_while_tokens_come(model: Path, tmp_path: Path) -> None:
    hot = on_cpu(2 * MIB, heat=wrong_at_first(model, tmp_path), adapt=True)
    with load(model, hot, n_batch=1) as engine:
        assert engine.hot is not None
        placed = engine.hot.figures().uploads
        deadline = time.monotonic() + 30
        while engine.hot.figures().uploads == placed and time.monotonic() < deadline:
            engine.logits(TOKENS)
        assert engine.hot.figures().uploads > placed


def test_no_adapt_freezes(model: Path, tmp_path: Path) -> None:
    heat = wrong_at_first(model, tmp_path)
    with load(model, on_cpu(2 * MIB, heat=heat), n_batch=1) as engine:
        assert engine.hot is not None
        first = engine.hot.residents()
        for _ in range(5):
            engine.logits(TOKENS)
            assert engine.hot.adapt() == 0
        assert engine.hot.residents() == first


# The command


def test_prompt_says_what_hot_experts_did(model: Path, tmp_path: Path) -> None:
    words = ("prompt", "-m", model, "hi", "-n", "12", "--temp", "0")
    places = {"XDG_DATA_HOME": str(tmp_path)}
    on = (*words, "--hot", "1M", "--hot-device", "CPU", "--no-adapt")
    value = dots(*on, "--json", environ=places).json
    assert value["text"] == dots(*words, "--hot", "off", "--json").json["text"]
    assert value["hot"].pop("cpu_s") > 0
    assert value["hot"].pop("device_s") > 0
    assert 0 < value["hot"].pop("hit_rate") < 1
    assert value["hot"] == {
        "device": "CPU", "resident_experts": 14, "n_experts": 100, "layers_off": 0,
        "uploads": 14, "uploaded_bytes": 14 * 74240, "streamed_bytes": 0,
        "prefill_hit_rate": value["hot"]["prefill_hit_rate"], "wait_s": 0.0,
    }  # fmt: skip
    assert "hot 14% @ " in dots(*on, "--stats", environ=places).stderr
    [kept] = (tmp_path / "dots" / "heat").glob("*.json")
    assert json.loads(kept.read_text())["layers"]["1"]
    assert dots(*on, "--heat", kept, environ=places).exit_status == 0


def test_a_conversation_has_hot_experts_too(model: Path, tmp_path: Path) -> None:
    done = dots(
        "chat", "-m", model, "-n", "4", "--stats", "--hot", "1M", "--hot-device", "CPU",
        stdin="hello\n", environ={"XDG_DATA_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.exit_status == 0
    assert "hot 14% @ " in done.stderr
    assert list((tmp_path / "dots" / "heat").glob("*.json"))


# A device that counts as a GPU


REMOTE = """
import sys
from pathlib import Path
from dotscli.engine import Engine, EngineOptions, HotOptions
from dotscli.engine import load as engine_load
from dotscli.engine.sampling import Sampling
from tests.hot_devices import rpc_device
engine_load.may_crash_with_amx = lambda: True
def run(hot):
    said = []
    options = EngineOptions(n_threads=1, n_ctx=256, hot=hot)
    with Engine.load(Path(sys.argv[1]), options, on_log=said.append) as engine:
        [*tokens, last] = engine.generate([1, 2, 3], Sampling(temp=0.0), n_predict=24)
        hot = last.stats.hot
        print([piece.token for piece in tokens], said)
        print(hot and (hot.device, hot.resident_experts, hot.hit_rate > 0))
run(None)
with rpc_device():
    run(HotOptions(nbytes=1 << 20, adapt=False, guard=False))
    run(HotOptions(nbytes=1 << 20, guard=False))
    run(HotOptions())
"""


@pytest.mark.skipif(not has_rpc(), reason="this llama.cpp has no RPC")
def test_dense_layers_and_hot_experts_on_a_worker(model: Path) -> None:
    """It has the CPU's kernels, so the answer is the same; all of the model fits, so auto is off.

    In a process of its own: the device stays known to the process that added it.
    """
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(model)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone, none, *rest = done.stdout.splitlines()
    assert alone.endswith(" []")
    assert none == "None"
    assert rest == [alone, "('RPC0', 14, True)"] * 2 + [alone, "None"]
