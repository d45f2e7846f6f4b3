"""The hot-expert backend under llama.cpp: what it takes, what it leaves alone, what it counts."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp")

from dotscli.errors import DotsError  # noqa: E402  # after the check that there is a llama_cpp
from dotscli.hot import heat_store  # noqa: E402
from dotscli.hot.backend import library, plugin  # noqa: E402
from tests.dots1_gguf import Run, Type, batches, find_device, log, write_model  # noqa: E402
from tests.hot_devices import compiler  # noqa: E402

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
N_MOE, N_EXPERTS, N_USED = 3, 16, 4


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with log():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hot") / "model.gguf"
    return write_model(
        path, Type.Q8_0, n_layers=N_MOE + 1, n_experts=N_EXPERTS, n_experts_used=N_USED
    )


def n_splits(pieces: list[str]) -> int:
    return int(re.findall(r"splits = (\d+)", "".join(pieces))[-1])


def test_one_split_for_each_moe_layer_and_stock_untouched(model: Path) -> None:
    backend = plugin.backend()
    with log() as pieces, Run(model):
        pass
    assert n_splits(pieces) == 1
    hot = backend.open("CPU")
    with log() as pieces, Run(model, hot):
        assert [layer.layer for layer in hot.layers()] == [1, 2, 3]
    assert n_splits(pieces) == 2 * N_MOE + 1
    assert "Hot model buffer size" in "".join(pieces)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_mapped_weights_stay_where_they_are(model: Path) -> None:
    hot = plugin.backend().open("CPU")
    with Run(model, hot):
        n_experts_nbytes = sum(layer.n_experts * layer.expert_nbytes for layer in hot.layers())
        mapped = 0
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(str(model)):
                first, last = line.split()[0].split("-")
                mapped += int(last, 16) - int(first, 16)
    # What nobody points into any more, llama.cpp unmaps after the load.
    assert mapped >= n_experts_nbytes > model.stat().st_size // 3


def test_the_device_is_in_the_registry_that_libllama_uses() -> None:
    plugin.backend()
    assert find_device("Hot")
    for copy in library.llama_path().parent.glob("libggml.so"):  # type: ignore[union-attr]
        other = ctypes.CDLL(str(copy))  # not the file that libllama is linked with
        other.ggml_backend_dev_by_name.restype = ctypes.c_void_p
        assert not other.ggml_backend_dev_by_name(b"Hot")


def test_without_a_device_heat_is_counted_and_nothing_else_happens(model: Path) -> None:
    hot = plugin.backend().open(None)
    with Run(model, hot) as run:
        run.decode([1])
        assert hot.counters().decode_misses == N_MOE * N_USED
        with pytest.raises(DotsError, match="no hot device"):
            hot.reserve(1, 2)


def test_counts_add_up(model: Path, tmp_path: Path) -> None:
    hot = plugin.backend().open("CPU")
    with Run(model, hot) as run:
        for layer in (1, 2, 3):
            hot.reserve(layer, 8)
            hot.set_residents(layer, range(8))
        hot.trace(tmp_path / "trace")
        for batch in batches([1, 8, 9, 100]):
            run.decode(batch)
        hot.trace(None)
        run.decode([1])  # counted, not traced
        heat, counters = hot.heat(), hot.counters()
    for layer in (1, 2, 3):
        decode, prefill = heat[layer]
        assert (decode.sum(), prefill.sum()) == (10 * N_USED, 109 * N_USED)
    decode = np.stack([heat[layer][0] for layer in heat])
    prefill = np.stack([heat[layer][1] for layer in heat])
    assert counters.decode_hits == decode[:, :8].sum()
    assert counters.decode_misses == decode[:, 8:].sum()
    assert counters.prefill_hits == prefill[:, :8].sum()
    assert counters.prefill_misses == prefill[:, 8:].sum()
    assert counters.decode_hit_rate == decode[:, :8].sum() / decode.sum()
    assert counters.uploads == 3 * 8
    assert counters.uploaded_nbytes == 3 * 8 * 3 * (256 * 160 // 32 * 34)
    assert min(counters.cpu_ns, counters.device_ns) > 0

    traced = np.zeros((4, N_EXPERTS), np.uint64)
    shapes = []
    for layer, ids in heat_store.read_trace(tmp_path / "trace"):
        np.add.at(traced[layer], ids.ravel(), 1)
        shapes.append((layer, *ids.shape))
        assert all(len(set(row)) == N_USED for row in ids.tolist())
    assert shapes == [(n, t, N_USED) for t in (1, 8, 9, 100) for n in (1, 2, 3)]
    assert traced.sum() == 118 * N_USED * N_MOE
    assert (traced[1:] <= decode + prefill).all()


def test_an_eval_callback_does_not_change_the_counts(model: Path) -> None:
    sums = []
    for names in ((), ("ffn_moe_up", "ffn_moe_swiglu")):
        hot = plugin.backend().open("CPU")
        with Run(model, hot, eval_callback=lambda n, _, names=names: n.startswith(names)) as run:
            run.decode([1, 2, 3])
            sums.append({layer: counts[0].tolist() for layer, counts in hot.heat().items()})
    assert sums[0] == sums[1]


def test_exchanging_by_hand(model: Path) -> None:
    hot = plugin.backend().open("CPU")
    with Run(model, hot):
        hot.reserve(2, 3)
        hot.set_residents(2, [5, 9])
        assert sorted(hot.residents(2)) == [-1, 5, 9]
        hot.place(2, hot.residents(2).index(-1), 7)
        before = hot.counters().uploads
        hot.set_residents(2, [9, 7, 0])
        assert sorted(hot.residents(2)) == [0, 7, 9]
        assert hot.counters().uploads == before + 1
        hot.place(2, 0, -1)
        assert hot.layers()[1].n_resident == 2
        there = next(expert for expert in hot.residents(2) if expert >= 0)
        for slot, expert, message in (
            (0, there, f"expert {there} lies in slot"),
            (3, 1, "no slot 3"),
            (-1, 1, "no slot -1"),
            (0, N_EXPERTS, f"no expert {N_EXPERTS}"),
            (0, -2, "no expert -2"),
        ):
            with pytest.raises(DotsError, match=message):
                hot.place(2, slot, expert)
        for layer, n_slots, message in (
            (0, 1, "layer 0 has no routed experts"),
            (99, 1, "layer 99 has no routed experts"),
            (-1, 1, "layer -1 has no routed experts"),
            (1, N_EXPERTS + 1, f"{N_EXPERTS + 1} slots for {N_EXPERTS} experts"),
            (1, -1, "-1 slots"),
        ):
            with pytest.raises(DotsError, match=message):
                hot.reserve(layer, n_slots)
        with pytest.raises(DotsError, match="has 3 slots, not 4"):
            hot.set_residents(2, range(4))
        hot.reserve(2, 0)
        assert hot.residents(2) == ()
        with pytest.raises(DotsError, match="can't write the trace"):
            hot.trace(Path("/no/such/folder/trace"))


def test_devices_that_do_not_exist_and_models_that_are_closed(model: Path) -> None:
    backend = plugin.backend()
    for name in ("CUDA7", "Hot"):
        with pytest.raises(DotsError, match=f"there is no device {name}"):
            backend.open(name)
    hot = backend.open("CPU")
    with pytest.raises(DotsError, match="another model is being loaded"):
        backend.open("CPU")
    hot.close()
    assert hot.layers() == ()
    assert hot.counters().uploads == 0
    with pytest.raises(DotsError, match="this model is closed"):
        hot.reserve(1, 1)


def test_the_model_may_be_freed_after_its_books_are_closed(model: Path) -> None:
    hot = plugin.backend().open("CPU")
    with Run(model, hot) as run:
        hot.reserve(1, 4)
        hot.set_residents(1, range(4))
        before = run.decode([1, 2])
        hot.close()
        run.clear()
        np.testing.assert_array_equal(run.decode([1, 2]), before)


LAYOUT_CHECK = r"""
#include "ggml.h"
#include "ggml-backend.h"
#include "ggml_abi.h"
#define SAME_SIZE(type) static_assert(sizeof(type) == sizeof(ggml_abi::type), #type)
#define SAME_FIELD(type, field) static_assert(offsetof(type, field) == \
    offsetof(ggml_abi::type, field), #type "." #field)
SAME_SIZE(ggml_tensor);
SAME_FIELD(ggml_tensor, type);      SAME_FIELD(ggml_tensor, buffer);
SAME_FIELD(ggml_tensor, ne);        SAME_FIELD(ggml_tensor, nb);
SAME_FIELD(ggml_tensor, op);        SAME_FIELD(ggml_tensor, op_params);
SAME_FIELD(ggml_tensor, flags);     SAME_FIELD(ggml_tensor, src);
SAME_FIELD(ggml_tensor, view_src);  SAME_FIELD(ggml_tensor, view_offs);
SAME_FIELD(ggml_tensor, data);      SAME_FIELD(ggml_tensor, name);
SAME_FIELD(ggml_tensor, extra);
SAME_SIZE(ggml_init_params);
SAME_SIZE(ggml_backend_dev_caps);
SAME_SIZE(ggml_backend_dev_props);
SAME_FIELD(ggml_backend_dev_props, memory_free);
SAME_FIELD(ggml_backend_dev_props, type);
SAME_FIELD(ggml_backend_dev_props, device_id);
SAME_FIELD(ggml_backend_dev_props, caps);
SAME_FIELD(ggml_backend_dev_caps, buffer_from_host_ptr);
SAME_FIELD(ggml_backend_dev_caps, mmap_support);
static_assert(GGML_TYPE_F32 == ggml_abi::TYPE_F32 && GGML_TYPE_I32 == ggml_abi::TYPE_I32 &&
    GGML_OP_NONE == ggml_abi::OP_NONE && GGML_OP_MUL_MAT_ID == ggml_abi::OP_MUL_MAT_ID &&
    GGML_OP_GLU == ggml_abi::OP_GLU && GGML_OP_GET_ROWS == ggml_abi::OP_GET_ROWS &&
    GGML_OP_SET_ROWS == ggml_abi::OP_SET_ROWS && GGML_GLU_OP_SWIGLU == ggml_abi::GLU_SWIGLU &&
    GGML_TENSOR_FLAG_OUTPUT == ggml_abi::FLAG_OUTPUT &&
    GGML_STATUS_SUCCESS == ggml_abi::STATUS_SUCCESS &&
    GGML_STATUS_FAILED == ggml_abi::STATUS_FAILED &&
    GGML_STATUS_ALLOC_FAILED == ggml_abi::STATUS_ALLOC_FAILED &&
    GGML_BACKEND_DEVICE_TYPE_CPU == ggml_abi::DEVICE_CPU &&
    GGML_BACKEND_DEVICE_TYPE_ACCEL == ggml_abi::DEVICE_ACCEL &&
    GGML_BACKEND_BUFFER_USAGE_WEIGHTS == ggml_abi::USAGE_WEIGHTS, "values");
"""


def test_layouts_are_those_of_the_installed_headers(tmp_path: Path) -> None:
    headers = library.llama_path().parents[2] / "include"  # type: ignore[union-attr]
    if not compiler() or not (headers / "ggml.h").is_file():
        pytest.skip("no compiler, or llama-cpp-python installed no headers")
    source = tmp_path / "check.cpp"
    source.write_text(LAYOUT_CHECK)
    subprocess.run(
        [str(compiler()), "-std=c++17", "-fsyntax-only", f"-I{headers}",
         f"-I{ROOT / 'dotscli/native'}", str(source)],
        check=True,
    )  # fmt: skip


WRONG_GGML = r"""
#include <cstddef>
#define F(name) extern "C" void * name() { return nullptr; }
%s
extern "C" const char * ggml_version() { return "%s"; }
"""


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("0.31.0", "it is written for ggml 0.25.x and llama.cpp runs on 0.31.0"),
        ("0.25.99", "ggml numbers its operations differently: NONE is nothing"),
        (None, "ggml_"),
    ],
    ids=["another version", "no names", "nothing of ggml"],
)
def test_another_ggml_is_refused_in_one_line(
    version: str | None, reason: str, tmp_path: Path
) -> None:
    text = (ROOT / "dotscli/native/hot/ggml_calls.h").read_text()
    names = sorted(set(re.findall(r"F\((ggml_\w+),", text)) - {"ggml_version"})
    source, target = tmp_path / "ggml.cpp", tmp_path / "libggml-other.so"
    body = "\n".join(f"F({name})" for name in names)
    source.write_text(WRONG_GGML % (body, version) if version else "int nothing;")
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    code = (
        "import ctypes, sys\n"
        "hot, other = (ctypes.CDLL(path) for path in sys.argv[1:3])\n"
        "hot.dots_hot_start.restype = ctypes.c_char_p\n"
        "print(hot.dots_hot_start(ctypes.c_void_p(other._handle)).decode())\n"
        "problem = ctypes.c_char_p()\n"
        "assert hot.dots_hot_open(b'CPU', ctypes.byref(problem)) == 0\n"
        "assert problem.value == b'the backend isn\\'t registered'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(library.library_path()), str(target)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert reason in done.stdout
    assert done.stdout.count("\n") == 1


DECODE_UNDER_WATCH = """
import ctypes, sys
from pathlib import Path
from dotscli.hot.backend import library, plugin
from tests.dots1_gguf import Run, batches, log

watch = ctypes.CDLL(sys.argv[1])
with log():
    hot = plugin.backend().open("CPU")
    maps = [m.split()[0] for m in open("/proc/self/maps") if str(library.library_path()) in m]
    ends = [int(end, 16) for m in maps for end in m.split("-")]
    watch.count_allocations_of(ctypes.c_void_p(min(ends)), ctypes.c_void_p(max(ends)))
    with Run(Path(sys.argv[2]), hot) as run:
        for layer in hot.layers():
            hot.reserve(layer.layer, 8)
            hot.set_residents(layer.layer, range(8))
        counts = [watch.allocations()]
        for sizes in ([1, 2, 8], [1, 2, 8] * 20):
            for batch in batches(sizes):
                run.decode(batch)
            counts.append(watch.allocations())
print(*counts)
"""


@pytest.mark.skipif(sys.platform != "linux" or not compiler(), reason="glibc and a compiler")
def test_decoding_allocates_nothing_once_it_is_warm(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "libcount.so"
    source = ROOT / "tests/native/count_allocations.cpp"
    command = [str(compiler()), "-O1", "-shared", "-fPIC", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", DECODE_UNDER_WATCH, str(target), str(model)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"LD_PRELOAD": str(target), "PYTHONPATH": str(ROOT)},
    )
    loaded, warm, later = map(int, done.stdout.split())
    assert 0 < loaded < warm == later
