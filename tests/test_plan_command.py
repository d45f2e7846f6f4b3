"""`dots plan`, as it is typed: the figures, the bars, JSON, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dotscli.hot import heat_store
from dotscli.hot.heat import Heat
from tests.transcript import dots

REAL = Path(__file__).parent / "data" / "dots.llm1.inst"
CARD = ("--vram", "24G", "--ram", "64G")
Q8 = ("-ctk", "q8_0", "-ctv", "q8_0")


def test_the_real_model_on_a_card_of_24_gib() -> None:
    said = dots("plan", REAL, *CARD, *Q8)
    assert (said.exit_status, said.stderr) == (0, "")
    lines = said.stdout.splitlines()
    assert lines[0] == "dots.llm1.inst as q4: 77.5 GiB, 62 layers, 61 of them with 128 experts"
    assert lines[1] == "context 8192, cache q8_0 and q8_0"
    assert "1319 of 7808, 21 to 22 slots per layer, expected hit rate 17%" in said.stdout
    assert "-ngl 63 -ncmoe 62 for hot experts; without them -ngl 63 -ncmoe 52" in said.stdout
    (row,) = [line for line in lines if line.startswith("8192")]
    assert row.split("  ")[-1].strip() == "1531 experts, 20%"
    assert "\x1b" not in said.stdout


def test_bars_add_up_and_are_ascii_in_a_pipe() -> None:
    said = dots("plan", REAL, *CARD, *Q8)
    bars = [line for line in said.stdout.splitlines() if line.endswith("]")]
    assert [line.split(" ")[0] for line in bars] == ["device", "main"]
    assert said.stdout.isascii()
    inside = bars[0].split("[")[1].rstrip("]")
    shares = {c: inside.count(c) / len(inside) for c in "#=-*. "}
    assert shares["#"] == pytest.approx(5.50 / 24, abs=0.02)
    assert shares["="] == pytest.approx(4.12 / 24, abs=0.02)
    assert shares["*"] == pytest.approx(12.2 / 24, abs=0.02)


def test_a_terminal_gets_blocks_and_colours() -> None:
    said = dots("plan", REAL, *CARD, tty=True, environ={"TERM": "xterm"})
    assert "█" in said.stdout
    assert "\x1b[34m" in said.stdout
    plain = dots("plan", REAL, *CARD, tty=True, environ={"TERM": "dumb"})
    assert plain.stdout.isascii()


def on_columns(columns: int, monkeypatch: pytest.MonkeyPatch, *words: object) -> list[str]:
    """The lines of a plan on a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(columns))
    environ = {"TERM": "xterm", "NO_COLOR": "1"}
    said = dots("plan", REAL, *CARD, "--bandwidth", "60G", *words, tty=True, environ=environ)
    assert (said.exit_status, said.stderr) == (0, "")
    return said.stdout.splitlines()


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_a_plan_is_no_wider_than_the_terminal_and_its_numbers_stay_whole(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = on_columns(columns, monkeypatch)
    assert max(map(len, lines)) <= columns
    whole = " ".join(" ".join(lines).split())
    text = dots("plan", REAL, *CARD, "--bandwidth", "60G").stdout
    for number in re.findall(r"\d[\d.,]*(?: [KMG]iB)?", text):
        assert number.rstrip(".,") in whole
    for line in lines:
        assert not re.search(r"\d$", line) or not re.match(r" *[KMG]iB", follower(lines, line))


def follower(lines: list[str], line: str) -> str:
    return lines[lines.index(line) + 1] if line != lines[-1] else ""


def test_what_a_plan_looks_like_on_40_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = on_columns(40, monkeypatch, *Q8)
    table = lines[lines.index("") + 1 :]
    assert table[:4] == [
        "memory     device  main memory",
        "total    24.0 GiB     64.0 GiB",
        "dense    5.64 GiB      631 MiB",
        "cache    4.12 GiB            -",
    ]
    at = lines.index("8192")
    assert lines[at : at + 4] == [
        "8192",
        "  f16   935 experts, 12%",
        "  q8_0  1319 experts, 17%",
        "  q4_0  1531 experts, 20%",
    ]
    at = lines.index("options")
    assert lines[at : at + 3] == [
        "options",
        "  -ngl 63 -ncmoe 62 for hot experts;",
        "  without them -ngl 63 -ncmoe 52",
    ]


def test_what_a_plan_looks_like_on_200_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = [line.rstrip() for line in on_columns(200, monkeypatch, *Q8)]
    piped = dots("plan", REAL, *CARD, "--bandwidth", "60G", *Q8).stdout.splitlines()
    drawn = [n for n, line in enumerate(piped) if "[" in line or "# dense" in line]
    assert len(drawn) == 3
    for n, (ours, plain) in enumerate(zip(wide, piped, strict=True)):
        assert ours == plain or n in drawn


def test_what_does_not_fit_is_said() -> None:
    said = dots("plan", REAL, "--vram", "0", "--ram", "64G")
    assert "22.4 GiB of experts have no place in memory" in said.stdout
    less = dots("plan", REAL, "--vram", "0", "--ram", "12G")
    assert "context 2048" in less.stdout
    assert "8192 tokens of context don't fit; without -c, a load takes 2048 as well" in less.stdout
    none = dots("plan", REAL, "--vram", "0", "--ram", "12G", "-c", "8192")
    assert "need 4.38 GiB more main memory than there is" in none.stdout
    assert "|" in next(line for line in none.stdout.splitlines() if line.endswith("]"))
    small = dots("plan", REAL, "--vram", "8G", "--ram", "128G", *Q8)
    assert "fit on the device for only 35 of 62 layers" in small.stdout


def test_json_holds_everything_that_is_shown() -> None:
    facts = dots("plan", REAL / "config.json", *CARD, *Q8, "--json").json
    device = facts["device"]
    parts = ("dense", "cache", "compute", "experts", "margin", "free")
    assert sum(device[f"{part}_bytes"] for part in parts) == device["total_bytes"] == 24 << 30
    assert facts["experts"]["resident"] == sum(layer["slots"] for layer in facts["layers"]) == 1319
    assert facts["experts"]["by_heat"] is False
    assert facts["options"]["stock"] == "-ngl 63 -ncmoe 52"
    assert [c["cache_type"] for c in facts["contexts"]] == ["f16", "q8_0", "q4_0"]
    assert facts["contexts"][1]["placements"][1]["resident"] == 1319


def test_a_gguf_and_where_no_device_is_given(tiny_gguf: Path) -> None:
    said = dots("plan", tiny_gguf, "--ram", "1G")
    assert said.exit_status == 0
    assert said.stdout.startswith("tiny.gguf: ")
    assert "context 2048" in said.stdout
    facts = dots("plan", tiny_gguf, "--vram", "64M", "--ram", "1G", "--json").json
    assert facts["experts"]["resident"] == facts["experts"]["total"] == 16


def test_heat_decides_who_is_resident(tiny_gguf: Path, tmp_path: Path) -> None:
    heat = tmp_path / "heat.json"
    counts = {"1": [0, 0, 0, 9, 0, 0, 0, 0], "2": [0, 7, 0, 0, 0, 0, 0, 0]}
    heat.write_text(json.dumps({"format": 1, "layers": counts}))
    facts = dots("plan", tiny_gguf, "--vram", "64M", "--heat", heat, "--json").json
    assert facts["experts"]["by_heat"] is True
    layers = {layer["layer"]: layer["experts"] for layer in facts["layers"]}
    assert layers[1][0] == 3
    assert layers[2][0] == 1
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"format": 1, "layers": {"1": [1, 2, 3]}}))
    said = dots("plan", tiny_gguf, "--heat", wrong)
    assert said.exit_status == 1
    assert "3 experts, the model has 8" in said.stderr


def test_heat_that_answers_have_left(tiny_gguf: Path, tmp_path: Path) -> None:
    kept = heat_store.file_of(tiny_gguf, tmp_path / "dots" / "heat")
    heat_store.save(Heat({1: np.eye(8)[3], 2: np.eye(8)[1]}), kept)
    here = {"XDG_DATA_HOME": str(tmp_path)}
    facts = dots("plan", tiny_gguf, "--vram", "64M", "--json", environ=here).json
    assert facts["experts"]["by_heat"] is True
    assert "their use in earlier answers" in facts["notes"][0]
    assert [layer["experts"][0] for layer in facts["layers"][1:]] == [3, 1]
    other = tmp_path / "heat.json"
    other.write_text(json.dumps({"format": 1, "layers": {"1": [0] * 7 + [1]}}))
    words = ("plan", tiny_gguf, "--vram", "64M", "--heat", other, "--json")
    facts = dots(*words, environ=here).json
    assert not any("earlier answers" in note for note in facts["notes"])
    assert facts["layers"][1]["experts"][0] == 7
    kept.write_text("{")
    facts = dots("plan", tiny_gguf, "--vram", "64M", "--json", environ=here).json
    assert facts["notes"][0].startswith("the saved heat is neither used nor updated")
    assert facts["experts"]["by_heat"] is False


def test_bandwidth_is_arithmetic_and_says_so() -> None:
    said = dots("plan", REAL, *CARD, *Q8, "--bandwidth", "60G").stdout
    assert "speed                  21.6 to " in said
    assert "tokens per second (calculated, not measured; without the device's time)" in said
    assert "  21.6                 2.78 GiB of main memory per token at 60.0 GiB/s: all" in said
    assert "disk" not in said


def test_what_has_no_memory_has_a_bar_and_a_speed_of_its_own() -> None:
    words = ("plan", REAL, "--vram", "0", "--ram", "24G", *Q8)
    said = dots(*words, "--bandwidth", "40G", "--disk-bandwidth", "3G").stdout
    bars = [line for line in said.splitlines() if line.endswith("]")]
    assert [line.split()[0] for line in bars] == ["main", "disk"]
    facts = dots(*words, "--bandwidth", "40G", "--disk-bandwidth", "3G", "--json").json
    low, high = facts["tokens_per_second"]
    flat, expected = facts["per_token"]["flat"], facts["per_token"]["expected"]
    gib = 1 << 30
    assert low == pytest.approx(
        1 / (flat["ram_bytes"] / (40 * gib) + flat["disk_bytes"] / (3 * gib)), rel=1e-6
    )
    slower = max(expected["ram_bytes"] / (40 * gib), expected["disk_bytes"] / (3 * gib))
    assert high == pytest.approx(1 / slower, rel=1e-6)
    assert f"speed                  {low:.3g} to {high:.3g} tokens per second" in said
    assert "of the disk at 3.00 GiB/s: all experts are equally likely" in said
    only_ram = dots(*words, "--bandwidth", "40G")
    assert "give --disk-bandwidth too" in only_ram.stdout
    assert dots(*words, "--bandwidth", "40G", "--json").json["tokens_per_second"] is None


def test_there_is_one_speed_where_everything_is_in_main_memory() -> None:
    said = dots("plan", REAL, "--vram", "0", "--ram", "128G", *Q8, "--bandwidth", "40G").stdout
    assert "speed                  at most " in said
    assert said.count("of main memory per token") == 1


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["plan", "nothing-there"], 1, "model nothing-there not found"),
        (["plan", REAL, "-ctk", "q9"], 2, "unknown cache type q9"),
        (["plan", REAL, "--type", "q17"], 1, "unknown type q17"),
        (["plan", REAL, "--vram", "much"], 2, "'much' is not a size"),
        (["plan", REAL, "-c", "-1"], 2, "--ctx-size"),
    ],
)
def test_what_is_refused(words: list[object], status: int, message: str) -> None:
    said = dots(*words)  # type: ignore[arg-type]
    assert (said.exit_status, said.stdout) == (status, "")
    assert message in said.stderr


def test_a_gguf_has_its_types_already(tiny_gguf: Path) -> None:
    said = dots("plan", tiny_gguf, "--type", "q4")
    assert said.exit_status == 2
    assert "leave out --type" in said.stderr
