"""Hot experts that don't pay are turned off: decided from a few tokens, remembered, said.

A second CPU in the device's place doesn't pay; tokens of a model as small as this take fractions of
a millisecond, so where a test needs the verdict, the times are stand-ins. Devices that are faster
or slower than any stand in as numbers too.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from dotscli.engine import Engine, EngineOptions, HotOptions
from dotscli.engine import load as engine_load
from dotscli.engine.decode import Decoder
from dotscli.engine.devices import registered
from dotscli.engine.hot import experts as engine_hot
from dotscli.engine.hot import trial as hot_trial
from dotscli.hot import verdict as guard
from dotscli.hot.backend import library
from dotscli.hot.backend.plugin import HotModel
from dotscli.hot.model_cost import file_cost
from dotscli.hot.verdict import Comparison, Trials
from dotscli.models.gguf_file import read_gguf
from tests.dots1_gguf import Type, write_model
from tests.transcript import dots

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard") / "model.gguf"
    return write_model(path, Type.Q4_K, Type.Q5_0, n_layers=6, n_experts=20, n_experts_used=4)


@pytest.fixture
def cpu_is_a_gpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU, said to be a GPU that can hold dense weights and all but 1 MiB of the experts."""
    cost = file_cost(read_gguf(model))
    needed = cost.dense_nbytes + cost.experts_nbytes + cost.compute_nbytes(512, "f16", "f16") - MIB
    needed += len(cost.layers) * cost.kv_layer_nbytes(512, "f16", "f16")
    [cpu] = [device for device in registered() if device.type == "CPU"]
    free = needed * 8 // 7
    gpu = dataclasses.replace(cpu, type="GPU", free_bytes=free, total_bytes=free)
    monkeypatch.setattr(engine_load, "registered", lambda: [gpu])
    left = dataclasses.replace(gpu, free_bytes=cost.experts_nbytes)
    monkeypatch.setattr(engine_hot, "registered", lambda: [left])


@pytest.fixture
def slow_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens are computed as ever, the times are those of a device that saves nothing."""

    def compare(hot: HotModel, decoder: Decoder, n_vocab: int) -> Comparison:
        found = hot_trial.compare(hot, decoder, n_vocab)
        assert min(found.on_cpu_s, found.experts_s, found.divided_s) > 0
        assert found.experts_s < found.on_cpu_s
        return Comparison(0.1, 0.08, 0.101, found.hit_rate)

    monkeypatch.setattr(engine_hot, "compare", compare)


def load(model: Path, said: list[str], **hot: object) -> Engine:
    options = EngineOptions(n_ctx=512, n_threads=1, hot=HotOptions(**hot))  # type: ignore[arg-type]
    return Engine.load(model, options, on_log=said.append)


# The decision


@pytest.mark.parametrize(
    ("comparison", "pays", "decided"),
    [
        (Comparison(0.100, 0.080, 0.080, 0.25), True, True),  # a device that takes no time
        (Comparison(0.100, 0.080, 0.091, 0.25), False, True),  # it saves less than half
        (Comparison(0.100, 0.080, 0.089, 0.25), True, True),
        (Comparison(0.100, 0.080, 0.101, 0.25), False, True),  # a second CPU
        (Comparison(0.100, 0.080, 0.300, 0.25), False, True),  # a slow link
        (Comparison(0.100, 0.080, 0.300, 0.0), True, False),  # nothing was hit: nothing is known
        (Comparison(0.100, 0.001, 0.300, 1.0), True, False),  # experts are nothing of the time
        (Comparison(0.0, 0.0, 0.0, 0.0), True, False),
    ],
)
def test_a_device_pays_that_saves_half_of_what_hits_cost(
    comparison: Comparison, pays: bool, decided: bool
) -> None:
    assert comparison.pays == pays
    assert comparison.decided == decided


def test_the_finding_says_both_times() -> None:
    assert Comparison(0.1234, 0.1, 0.13, 0.25).describe() == (
        "they don't pay off on this machine: a token took 130 ms with them, 25% hits, "
        "and 123 ms with all experts on the CPU"
    )


def test_what_is_known_depends_on_the_circumstances(tmp_path: Path) -> None:
    path, found = tmp_path / "kept" / "a.trials", Comparison(1, 0.5, 0.9, 0.1)
    ours = guard.circumstances("CUDA0", "a card", 8, "1.0")
    others = [
        guard.circumstances("CUDA1", "a card", 8, "1.0"),
        guard.circumstances("CUDA0", "another", 8, "1.0"),
        guard.circumstances("CUDA0", "a card", 4, "1.0"),
        guard.circumstances("CUDA0", "a card", 8, "1.1"),
    ]
    Trials(path, "m.gguf", ours).remember(found)
    assert Trials(path, "m.gguf", ours).known() == found
    assert [Trials(path, "m.gguf", other).known() for other in others] == [None] * 4
    Trials(path, "m.gguf", others[0]).remember(dataclasses.replace(found, divided_s=2))
    assert Trials(path, "m.gguf", ours).known() == found
    assert [(model, key) for model, key, _ in guard.all_known(path.parent)] == [
        ("m.gguf", ours), ("m.gguf", others[0]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": 1, "model": "m", "comparisons": []}', "[" * 50_000,
     '{"format": 2, "model": "m", "comparisons": {}}',
     '{"format": 1, "model": "m", "comparisons": {"k": {"on_cpu_s": "x"}}}',
     '{"format": 1, "model": "m", "comparisons": {"k": {"on_cpu_s": 1e999, "experts_s": 1, '
     '"divided_s": 1, "hit_rate": 1}}}',
     '{"format": 1, "model": "m", "comparisons": {"k": {"on_cpu_s": ' + "1" * 400 + "}}}"],
)  # fmt: skip
def test_a_damaged_file_knows_nothing_and_is_written_anew(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.trials"
    path.write_text(text)
    trials = Trials(path, "m", "k")
    assert trials.known() is None
    trials.remember(Comparison(1, 1, 1, 1))
    assert trials.known() == Comparison(1, 1, 1, 1)


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.trials"
    for number in range(guard.MAX_COMPARISONS + 5):
        Trials(path, "m", str(number)).remember(Comparison(1, 1, 1, 1))
    assert len(list(guard.all_known(tmp_path))) == guard.MAX_COMPARISONS
    assert Trials(path, "m", "0").known() is None


# The measurement


@pytest.mark.usefixtures("cpu_is_a_gpu", "slow_device")
def test_what_does_not_pay_is_off_and_stock_is_loaded(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with load(model, said, folder=tmp_path) as engine:
        assert engine.hot is None
        assert len(engine.logits([1, 2, 3])) == 3
        reason = engine.hot_off
    assert said == [f"hot experts are off: {reason}"]
    assert reason.startswith("they don't pay off on this machine: a token took ")
    [path] = tmp_path.iterdir()  # and no heat: nothing of it counts
    assert path.suffix == guard.SUFFIX


@pytest.mark.usefixtures("cpu_is_a_gpu", "slow_device")
def test_it_is_measured_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[str] = []
    load(model, first, folder=tmp_path).close()

    def refuse(*_: object) -> None:
        raise AssertionError("measured again, or loaded before it was known")

    monkeypatch.setattr(engine_hot, "compare", refuse)
    monkeypatch.setattr("dotscli.hot.backend.plugin.HotBackend.open", refuse)
    again: list[str] = []
    with load(model, again, folder=tmp_path) as engine:
        assert engine.hot is None
    assert again == first


@pytest.mark.usefixtures("cpu_is_a_gpu")
def test_one_that_pays_stays(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Comparison(0.1, 0.08, 0.05, 0.7)
    monkeypatch.setattr(engine_hot, "compare", lambda *_: fast)
    said: list[str] = []
    with load(model, said, folder=tmp_path) as engine:
        assert engine.hot is not None
        assert engine.hot_off == ""
    assert said == []
    [(_, _, known)] = guard.all_known(tmp_path)
    assert known == fast


@pytest.mark.usefixtures("slow_device")
def test_a_size_is_obeyed_and_the_finding_is_said(model: Path, tmp_path: Path) -> None:
    with load(model, [], nbytes=1 << 30, device="CPU", guard=False) as engine:
        expected = engine.logits([1, 2, 3])
    for _ in range(2):
        said: list[str] = []
        with load(model, said, nbytes=1 << 30, device="CPU", folder=tmp_path) as engine:
            assert engine.hot is not None
            np.testing.assert_array_equal(engine.logits([1, 2, 3]), expected)
        [line] = said
        assert line.startswith("hot experts are on as requested, but they don't pay off")


def test_the_comparison_leaves_no_heat_and_no_cache(model: Path, tmp_path: Path) -> None:
    with load(model, [], nbytes=1 << 30, device="CPU", folder=tmp_path) as engine:
        assert engine.hot is not None
        assert engine.hot.figures().decode_hits == 0
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.usefixtures("slow_device")
def test_doctor_says_what_was_found(model: Path, tmp_path: Path) -> None:
    places = {"XDG_DATA_HOME": str(tmp_path)}
    words = ("prompt", "-m", model, "hi", "-n", "1", "--hot", "64M", "--hot-device", "CPU")
    assert "but they don't pay off on this machine" in dots(*words, environ=places).stderr
    [found] = dots("doctor", "--json", environ=places).json["hot_backend"]["measured"]
    assert (found["model"], found["pays"]) == ("model.gguf", False)
    assert found["on"].startswith("CPU (")
    assert found["finding"] in dots("doctor", environ=places).stdout
    [path] = (tmp_path / "dots" / "heat").glob(f"*{guard.SUFFIX}")
    assert json.loads(path.read_text())["model"] == "model.gguf"
