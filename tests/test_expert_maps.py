"""`dots inspect --experts`: heat and errors of experts as maps, figures and pictures."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dotscli.hot import heat_store
from dotscli.hot.heat import Heat
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.output.error_report import TensorErrors
from dotscli.terminal.text import COLOUR
from dotscli.views import expert_figures as figures
from dotscli.views.expert_maps import colour_lines, error_map, heat_map, rgb, shade_lines
from dotscli.views.expert_plot import svg
from tests.test_importance import measurements, write
from tests.transcript import dots

TRUE_COLOUR = {"FORCE_COLOR": "1", "COLORTERM": "truecolor"}


def heat_file(path: Path, layers: dict[str, list[float]]) -> Path:
    path.write_text(json.dumps({"format": 1, "layers": layers}))
    return path


@pytest.fixture
def heat(tmp_path: Path) -> Path:
    """Three layers of 8: even, one expert alone, two dead."""
    return heat_file(
        tmp_path / "h.json",
        {"1": [10] * 8, "2": [0, 0, 0, 80, 0, 0, 0, 0], "3": [0, 1, 2, 4, 8, 16, 32, 0]},
    )


@pytest.fixture(scope="module")
def reported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with o.gguf and its report r.json."""
    folder = tmp_path_factory.mktemp("reported")
    list(quantize_checkpoint(tiny_checkpoint, folder / "o.gguf", report=folder / "r.json"))
    return folder


def test_entropy_is_in_bits() -> None:
    assert figures.entropy([5, 5, 5, 5]) == pytest.approx(2.0)
    assert figures.entropy([7, 0, 0]) == 0.0
    assert figures.entropy([0, 0]) == 0.0
    assert figures.entropy([3, 1]) == pytest.approx(0.8113, abs=1e-4)
    assert figures.entropy([1e18, 5e-324]) == 0.0  # a count whose share is none


def test_figures_of_a_layer() -> None:
    even, one = figures.layer_heat(
        Heat({2: np.array([0.0, 0.0, 9.0, 0.0]), 1: np.array([3.0, 3.0, 3.0, 3.0])})
    )
    assert (even.layer, even.dead, even.skew, even.entropy) == (1, (), 1.0, even.most)
    assert (one.layer, one.dead, one.hottest, one.share) == (2, (0, 1, 3), 2, 1.0)
    assert one.skew == 4.0
    assert one.relative() == [0.0, 0.0, 4.0, 0.0]


def tensor(name: str, errors: tuple[float, ...], stacked: bool = True) -> TensorErrors:
    return TensorErrors(name, "Q4_K", 8, True, stacked, errors, (1.0,) * len(errors))


def test_the_worst_and_the_whole_expert() -> None:
    errors = figures.expert_errors(
        [
            tensor("blk.1.ffn_up_exps.weight", (0.3, 0.1)),
            tensor("blk.1.ffn_down_exps.weight", (0.4, 0.2)),
            tensor("blk.1.ffn_up.weight", (0.9,), stacked=False),
        ]
    )
    found = [(e.projection, e.expert, e.error) for e in figures.worst(errors, 3)]
    assert found == [("down", 0, 0.4), ("up", 0, 0.3), ("down", 1, 0.2)]
    assert figures.whole_experts(errors)[1] == pytest.approx([0.125**0.5, 0.025**0.5])


def test_a_map_in_characters(heat: Path) -> None:
    done = dots("inspect", heat, "--experts")
    assert done.exit_status == 0
    assert done.stdout == (
        "heat: tokens routed to an expert, relative to an even share\n"
        f"from {heat}\n"
        "\n"
        "      0        bits\n"
        " 1    ++++++++ 3.00\n"
        " 2    xxx@xxxx 0.00\n"
        " 3    x .-+*%x 1.88\n"
        '      " " 1/8, "+" 1, "@" 8 times, "x" no tokens\n'
        "\n"
        "entropy  0.00 bits (layer 2) to 3.00 (layer 1); 3.00 would be perfectly even\n"
        "skew     the hottest tenth of a layer gets 4.4 times an even share (layer 2: 8.0)\n"
        "hottest  expert 3 of layer 2 gets 100.0% of its layer's tokens\n"
        "dead     9 of 24 experts got no tokens\n"
        "         layer 2: 0, 1, 2, 4, 5, 6, 7\n"
        "         layer 3: 0, 7\n"
        "\n"
    )


def test_a_map_in_colour_has_two_layers_a_line(heat: Path) -> None:
    text = dots("inspect", heat, "--experts", environ=TRUE_COLOUR).stdout
    lines = COLOUR.sub("", text).splitlines()
    assert lines[4] == " 1  2 ▀▀▀▀▀▀▀▀ 3.00 0.00"
    assert lines[5] == " 3    ▀▀▀▀▀▀▀▀ 1.88"
    even, none, most = (";".join(map(str, rgb(cell))) for cell in (0.5, None, 1.0))
    assert f"\x1b[38;2;{even};48;2;{none}m▀▀▀\x1b[0m" in text
    assert f"\x1b[38;2;{even};48;2;{most}m▀\x1b[0m" in text


def test_without_24_bit_colours_there_are_256(heat: Path) -> None:
    text = dots("inspect", heat, "--experts", environ={"FORCE_COLOR": "1"}).stdout
    assert ";2;" not in text
    assert re.search("\x1b\\[38;5;\\d+;48;5;\\d+m▀", text)


@pytest.mark.parametrize("width", [20, 80, 120, 200])
@pytest.mark.parametrize("n_experts", [8, 128, 160])
def test_a_map_is_no_wider_than_the_terminal(width: int, n_experts: int) -> None:
    rows = {layer: [1.0 + expert for expert in range(n_experts)] for layer in range(1, 62)}
    notes = dict.fromkeys(rows, "6.12")
    shown = heat_map(rows, notes)
    map_lines = [line for line in shade_lines(shown, width) if re.match(r" ?\d+ ", line)]
    assert len(map_lines) == 61
    assert max(map(len, map_lines)) <= width
    colour = ["".join(text for text, _ in parts) for parts in colour_lines(shown, width, True)]
    assert max(len(line) for line in colour if "▀" in line) <= width
    per_cell = -(-n_experts // (width - 16))
    assert (f"{per_cell} experts share a cell" in colour[-1]) == (per_cell > 1)


def test_128_experts_on_80_columns_share_in_twos() -> None:
    rows = {1: [0.0, 0.0, 0.0, 2.0] + [1.0] * 124}
    dead, half, *rest = heat_map(rows, {}).cells(1, 2)
    assert (dead, half) == (None, 0.5)
    assert len(rest) == 62
    largest, *_ = error_map({1: [0.1, 0.3, 0.2, 0.1]}, {}).cells(1, 2)
    assert largest == 1.0


def test_equal_errors_make_a_map_too() -> None:
    assert list(shade_lines(error_map({1: [0.5, 0.5]}, {1: "50"}), 80))


def test_a_report_and_its_model(reported: Path) -> None:
    report = reported / "r.json"
    text = dots("inspect", report, "--experts").stdout
    assert "columns are weighted equally (no importance matrix)" in text
    assert "the worst 10\n" in text
    done = dots("inspect", reported / "o.gguf", "--report", report, "--json")
    value = done.json["error"]
    assert [p["projection"] for p in value["projections"]] == ["gate", "up", "down"]
    assert len(value["worst"]) == 10
    assert value["worst"][0]["error"] == max(
        max(t["errors"]) for t in value["tensors"] if t["stacked"]
    )
    assert {layer: len(row) for layer, row in value["layers"].items()} == {"1": 8, "2": 8}


def test_a_report_of_another_file_is_refused(
    reported: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    list(quantize_checkpoint(tiny_checkpoint, other, "q8_0"))
    done = dots("inspect", other, "--experts", "--report", reported / "r.json")
    assert done.exit_status == 1
    assert "does not belong to" in done.stderr


def test_heat_that_answers_have_left(reported: Path, tmp_path: Path) -> None:
    model, places = reported / "o.gguf", {"XDG_DATA_HOME": str(tmp_path)}
    done = dots("inspect", model, "--experts", environ=places)
    assert done.exit_status == 0
    assert "nothing is known about its experts yet" in done.stdout
    assert done.stdout.count("\n") == 1
    assert dots("inspect", model, "--experts", "--json", environ=places).json == {
        "path": str(model), "heat": None, "error": None,
    }  # fmt: skip
    kept = Heat({1: np.arange(8.0), 2: np.ones(8)})
    heat_store.save(kept, heat_store.file_of(model, tmp_path / "dots" / "heat"))
    value = dots("inspect", model, "--experts", "--json", environ=places).json["heat"]
    assert value["from"] == "answers on this machine"
    assert [layer["dead"] for layer in value["layers"]] == [[0], []]
    wrong = heat_file(tmp_path / "w.json", {"1": [1.0] * 9})
    done = dots("inspect", model, "--heat", wrong, environ=places)
    assert done.exit_status == 1
    assert "covers 9 experts" in done.stderr


def test_an_importance_matrix_has_counts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "i.gguf", measurements(tiny_checkpoint))
    value = dots("inspect", path, "--experts", "--json").json["heat"]
    assert [layer["layer"] for layer in value["layers"]] == [1, 2]
    assert value["from"] == str(path)


@pytest.mark.parametrize("path", ["no/such.gguf", "."])
def test_what_is_no_file(path: str) -> None:
    done = dots("inspect", path, "--experts")
    assert done.exit_status == 1
    assert f"{path} is not a file" in done.stderr


def test_a_picture_in_svg(heat: Path, tmp_path: Path) -> None:
    plot = tmp_path / "m.svg"
    assert dots("inspect", heat, "--plot", plot).exit_status == 0
    root = ElementTree.fromstring(plot.read_text())
    titles = [e.text for e in root.iter() if e.tag.endswith("title")]
    assert len(titles) == 24
    assert "layer 2, expert 3: 8" in titles
    again = dots("inspect", heat, "--plot", plot)
    assert again.exit_status == 1
    assert "--force replaces it" in again.stderr
    assert dots("inspect", heat, "--plot", plot, "--force").exit_status == 0
    assert dots("inspect", heat, "--plot", tmp_path / "m.gif").exit_status == 2


def test_numbers_of_a_large_map_stand_beside_it() -> None:
    rows = {layer: [1.0 + expert for expert in range(128)] for layer in range(1, 62)}
    root = ElementTree.fromstring(svg("dots.gguf", [heat_map(rows, {})]))
    cells = [e for e in root.iter() if e.tag.endswith("rect") and len(e)]
    left, top = (min(int(cell.get(name, "0")) for cell in cells) for name in ("x", "y"))
    right, bottom = (max(int(c.get(name, "0")) + 8 for c in cells) for name in ("x", "y"))
    assert (right - left, bottom - top) == (128 * 8, 61 * 8)
    layers, experts = [], []
    for text in (e for e in root.iter() if e.tag.endswith("text")):
        x, y, said = int(text.get("x", "0")), int(text.get("y", "0")), text.text or ""
        assert x < left or y <= top or y > bottom or x >= right, f"{said} lies on the map"
        if top < y <= bottom:
            assert text.get("text-anchor") == "end"
            assert x - 7 * len(said) >= 0
            layers.append(int(said))
        elif y == top - 8 and said.isdigit():
            assert (x - left - 4) // 8 == int(said)
            experts.append(int(said))
    assert layers == list(range(1, 62, 4))
    assert experts == list(range(0, 128, 8))
    assert right + 40 <= int(root.get("width", "0"))


def test_a_png_needs_matplotlib(
    heat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.colors", None)
    done = dots("inspect", heat, "--plot", tmp_path / "m.png")
    assert done.exit_status == 1
    assert "pip install 'dotscli[plot]'" in done.stderr
    assert not (tmp_path / "m.png").exists()


def test_a_picture_in_png(heat: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert dots("inspect", heat, "--plot", tmp_path / "m.png").exit_status == 0
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
