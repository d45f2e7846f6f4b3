"""From pieces to text, JSON and a line of figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from dotscli.conversation.answer import Answer, answer_json, rate, short, stats_line
from dotscli.engine.stream import Piece, Stats
from dotscli.views.tensor_groups import Stored, group_of, table_rows, tally

STATS = Stats(
    prompt_tokens=1204, reused_tokens=1050, completion_tokens=312,
    prefill_s=4.0, decode_s=75.0, ttft_s=4.02,
)  # fmt: skip


def test_pieces_are_written_as_they_come() -> None:
    written: list[str] = []
    answer = Answer()
    pieces = iter([Piece("He", 1), Piece("", 2), Piece("llo", 3), Piece("", None, "stop", STATS)])
    answer.read(pieces, written.append)
    assert written == ["He", "", "llo", ""]
    assert (answer.text, answer.finish_reason, answer.stats) == ("Hello", "stop", STATS)


def test_an_answer_that_was_broken_off_keeps_what_came() -> None:
    def pieces() -> object:
        yield Piece("He", 1)
        raise KeyboardInterrupt

    answer = Answer()
    with pytest.raises(KeyboardInterrupt):
        answer.read(pieces(), lambda text: None)  # type: ignore[arg-type]  # an iterator it is
    assert (answer.text, answer.finish_reason) == ("He", "interrupted")


def test_the_line_of_figures() -> None:
    line = stats_line(STATS, n_ctx=8192, seed=42)
    assert line == (
        "312 tok · 4.1 tok/s · prefill 154 tok @ 38.5 tok/s (1,050 reused) · TTFT 4.02 s"
        " · ctx 1.5k/8.2k · seed 42"
    )
    assert stats_line(STATS, n_ctx=8192, seed=42, finish_reason="length").startswith(
        "312 tok (length limit) · "
    )


def test_a_narrow_terminal_gets_fewer_figures() -> None:
    for width in (100, 60, 40):
        line = stats_line(STATS, n_ctx=8192, seed=42, width=width)
        assert len(line) < width
        assert line.startswith("312 tok · 4.1 tok/s")
        assert line.endswith("seed 42")


def test_the_line_of_figures_of_nothing() -> None:
    assert stats_line(Stats(), n_ctx=512, seed=0) == "0 tok · prefill 0 tok · ctx 0/512 · seed 0"


def test_a_long_load_is_in_the_line_of_figures() -> None:
    assert "load" not in stats_line(STATS, n_ctx=512, seed=0, load_s=0.99)
    assert " · load 12.3 s · " in stats_line(STATS, n_ctx=512, seed=0, load_s=12.34)


def test_the_json_object() -> None:
    answer = Answer("Hello", "stop", STATS)
    value = answer_json(
        answer, model=Path("m.gguf"), seed=1, n_ctx=512, load_s=0.25, phases={"weights_s": 0.123456}
    )
    assert value == {
        "text": "Hello",
        "finish_reason": "stop",
        "model": "m.gguf",
        "seed": 1,
        "n_ctx": 512,
        "usage": {"prompt_tokens": 1204, "completion_tokens": 312},
        "timings": {
            "load_s": 0.25,
            "load": {"weights_s": 0.1235},
            "ttft_s": 4.02,
            "prefill_tps": 38.5,
            "decode_tps": 4.15,
        },
        "hot": None,
        "ram": None,
        "draft": {"drafted_tokens": 0, "accepted_tokens": 0},
    }


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1600, "1.6k"), (9949, "9.9k"), (32768, "33k")]
)
def test_tokens_in_few_characters(count: int, text: str) -> None:
    assert short(count) == text


@pytest.mark.parametrize(("speed", "text"), [(4.149, "4.1"), (99.94, "99.9"), (3321.0, "3,321")])
def test_speeds(speed: float, text: str) -> None:
    assert rate(speed) == text


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("token_embd.weight", "embedding"),
        ("blk.0.attn_q.weight", "attention"),
        ("blk.0.attn_output.weight", "attention"),
        ("blk.0.attn_q_norm.weight", "norms"),
        ("blk.0.ffn_down.weight", "dense layers"),
        ("blk.61.ffn_gate_inp.weight", "router"),
        ("blk.61.exp_probs_b.bias", "router"),
        ("blk.61.ffn_up_exps.weight", "experts gate, up"),
        ("blk.61.ffn_down_exps.weight", "experts down"),
        ("blk.61.ffn_down_shexp.weight", "shared experts"),
        ("output_norm.weight", "norms"),
        ("output.weight", "output"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_the_groups_of_tensors(name: str, group: str) -> None:
    assert group_of(name) == group


def test_groups_add_up() -> None:
    groups = tally(
        [
            Stored("blk.1.ffn_down_exps.weight", "Q5_0", 88, 128),
            Stored("blk.2.ffn_down_exps.weight", "IQ4_NL", 72, 128),
            Stored("blk.3.ffn_down_exps.weight", "IQ4_NL", 72, 128),
            Stored("output.weight", "Q6_K", 210, 256),
        ]
    )
    assert [group.name for group in groups] == ["experts down", "output", "total"]
    assert table_rows(groups) == [
        ("experts down", "3", "IQ4_NL x2, Q5_0 x1", "232 B", "52.5 %", "4.83"),
        ("output", "1", "Q6_K", "210 B", "47.5 %", "6.56"),
        ("total", "4", "", "442 B", "100.0 %", "5.53"),
    ]
