"""The engine on a tiny random dots1: what it computes, how it ends, what it survives."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest

from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampling import Sampling
from dotscli.errors import DotsError
from tests import gguf_maker
from tests.engine_kit import GREEDY, PROMPT, ids, load, run, text

# What it computes


def test_greedy_takes_the_largest_logit_each_time(engine: Engine) -> None:
    tokens = engine.tokenize(PROMPT, parse_special=True)
    chosen = ids(run(engine))
    logits = engine.logits(tokens + chosen[:-1])
    assert logits.shape == (len(tokens) + len(chosen) - 1, engine.n_vocab)
    assert logits.dtype == np.float32
    assert chosen == logits[len(tokens) - 1 :].argmax(axis=1).tolist()


def test_a_seed_repeats_an_answer_and_another_gives_another(engine: Engine) -> None:
    answers = [ids(run(engine, sampling=Sampling(temp=2.0, seed=seed))) for seed in (5, 5, 6)]
    assert answers[0] == answers[1] != answers[2]


def test_top_k_of_one_is_greedy(engine: Engine) -> None:
    assert ids(run(engine, sampling=Sampling(top_k=1, seed=3))) == ids(run(engine))


def test_a_large_penalty_forbids_repeating_the_prompt_and_the_answer(engine: Engine) -> None:
    sampling = Sampling(temp=0.0, presence_penalty=100.0)
    tokens = engine.tokenize(PROMPT, parse_special=True)
    chosen = ids(run(engine, sampling=sampling, n_predict=40))
    assert len(set(chosen)) == len(chosen)
    assert not set(chosen) & set(tokens)


def test_the_size_of_batches_does_not_matter(model: Path) -> None:
    tokens = [i * 7 % 256 for i in range(100)]
    logits, chosen = [], []
    for n_batch in (1, 7, 33, 512):
        # the kernels of flash attention round differently for short batches
        options = {"n_ctx": 512, "cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
        with load(model, n_batch=n_batch, **options) as engine:
            logits.append(engine.logits(tokens))
            engine.forget()
            chosen.append(ids(list(engine.generate(tokens, GREEDY, n_predict=5))))
    assert all(np.abs(other - logits[0]).max() < 1e-4 for other in logits)
    assert all(other == chosen[0] for other in chosen)


def test_every_type_of_cache_works_and_costs_little(engine: Engine, model: Path) -> None:
    tokens = engine.tokenize(PROMPT * 5, parse_special=True)
    reference = engine.logits(tokens)
    for k, v in (
        ("f32", "f32"),
        ("bf16", "f16"),
        ("q8_0", "q8_0"),
        ("q8_0", "q4_0"),
        ("iq4_nl", "q5_1"),
    ):
        with load(model, n_ctx=256, cache_type_k=k, cache_type_v=v) as other:
            difference = np.abs(other.logits(tokens) - reference).mean()
            assert difference < 0.3, (k, v, difference)


def test_a_cache_whose_blocks_do_not_fit_a_head_is_refused(tmp_path: Path) -> None:
    path = gguf_maker.dots1(hidden=48, n_heads=3).write(tmp_path / "m.gguf")
    for options in ({"cache_type_k": "q8_0", "flash_attn": "off"}, {"cache_type_v": "q4_0"}):
        with pytest.raises(DotsError, match="multiple of 32"):
            load(path, **options)


def test_flash_attention_on_and_off_agree(engine: Engine, model: Path) -> None:
    tokens = engine.tokenize(PROMPT * 5, parse_special=True)
    with (
        load(model, n_ctx=256, flash_attn="off") as off,
        load(model, n_ctx=256, flash_attn="on") as on,
    ):
        assert np.abs(off.logits(tokens) - on.logits(tokens)).max() < 0.05


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16", "MXFP4"])
def test_prefill_and_decode_of_every_kind_of_weight(
    engine: Engine, tmp_path: Path, kind: str
) -> None:
    number = gguf.GGMLQuantizationType[kind]
    made = gguf_maker.dots1()
    for name, (shape, _, data) in made.tensors.items():
        if len(shape) > 1 and ".ffn_gate_inp." not in name:
            values = np.frombuffer(data, "<f4").reshape(shape[::-1])
            made.tensors[name] = (shape, number, gguf.quants.quantize(values, number).tobytes())
    tokens = engine.tokenize(PROMPT * 10, parse_special=True)
    expected = engine.logits(tokens)
    with load(made.write(tmp_path / "m.gguf"), n_ctx=256) as quantized:
        logits = quantized.logits(tokens)
        assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.8
        assert len(ids(run(quantized))) == 12


@pytest.mark.parametrize(
    "options",
    [
        {"override_tensor": (r"ffn_(up|gate|down)_exps=CPU",)},
        {"override_tensor": (r"blk\.1\.=CPU", r"output=CPU")},
        {"cpu_moe": True},
        {"n_cpu_moe": 2},
        {"n_gpu_layers": 0},
    ],
)
def test_placement_changes_nothing_in_the_answer(
    engine: Engine, model: Path, options: dict[str, object]
) -> None:
    with load(model, n_ctx=256, **options) as other:
        assert ids(run(other)) == ids(run(engine))


def test_placement_mistakes_are_explained(model: Path) -> None:
    for override, words in (
        ("ffn=CUDA9", "CUDA9"),
        ("nothing_like_it=CPU", "nothing_like_it"),
        ("(=CPU", "regular expression"),
        ("ffn", "ffn"),
    ):
        with pytest.raises(DotsError, match="--override-tensor") as caught:
            load(model, override_tensor=(override,))
        assert words in caught.value.message
    with pytest.raises(DotsError) as caught:
        load(model, override_tensor=("ffn=CUDA9",))
    assert "CPU" in caught.value.hint


# Text


def test_special_tokens_are_names_only_when_asked_for(engine: Engine) -> None:
    name = "<|response|>"
    assert len(engine.tokenize(name, parse_special=True)) == 1
    plain = engine.tokenize(name, parse_special=False)
    assert len(plain) > 1
    assert engine.detokenize(plain) == name.encode()
    special = engine.tokenize(f"a{name}b", parse_special=True)
    assert engine.detokenize(special) == b"ab"
    assert engine.detokenize(special, special=True) == b"a<|response|>b"


@pytest.mark.parametrize("sample", ["", "héllo wörld", "你好，世界", "🙂\n\n\t x", "a\0b", "  two"])
def test_text_survives_the_tokenizer(engine: Engine, sample: str) -> None:
    assert engine.detokenize(engine.tokenize(sample, parse_special=False)) == sample.encode()


def test_composed_and_decomposed_characters_are_the_same(engine: Engine) -> None:
    composed, decomposed = "caf\u00e9 \u00c5", "cafe\u0301 A\u030a"
    tokens = engine.tokenize(decomposed, parse_special=False)
    assert tokens == engine.tokenize(composed, parse_special=False)
    assert engine.detokenize(tokens) == composed.encode()


def test_a_lone_surrogate_is_no_crash(engine: Engine) -> None:
    assert engine.detokenize(engine.tokenize("a\ud800b", parse_special=False)) == b"a?b"


def test_pieces_add_up_to_the_tokens_bytes(engine: Engine) -> None:
    pieces = run(
        engine, sampling=Sampling(temp=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=1), n_predict=200
    )
    assert text(pieces) == engine.detokenize(ids(pieces)).decode("utf-8", "replace")


# How answers end


def test_the_last_piece_has_reason_and_figures(engine: Engine) -> None:
    *pieces, last = run(engine)
    assert all(piece.finish_reason is piece.stats is None for piece in pieces)
    assert last.finish_reason == "length"
    assert last.token is None
    stats = last.stats
    assert stats is not None
    assert (stats.prompt_tokens, stats.reused_tokens) == (2, 0)
    assert stats.completion_tokens == len(ids(pieces)) == 12
    assert 0 < stats.prefill_s <= stats.ttft_s
    assert stats.decode_s > 0
    assert engine.stats == stats


def test_the_end_token_ends_the_answer_and_is_not_shown(tmp_path: Path) -> None:
    made = gguf_maker.dots1()
    shape, kind, data = made.tensors["output.weight"]
    rows = np.frombuffer(data, "<f4").reshape(shape[::-1]).copy()
    with load(made.write(tmp_path / "m.gguf"), n_ctx=256) as engine:
        first = ids(run(engine, n_predict=1))[0]
    rows[[first, gguf_maker.EOS]] = rows[[gguf_maker.EOS, first]]  # now the end token is likeliest
    made.tensors["output.weight"] = (shape, kind, rows.tobytes())
    with load(made.write(tmp_path / "m.gguf"), n_ctx=256) as engine:
        assert engine.eos_token == "<|endofresponse|>"
        (last,) = run(engine)
        assert (last.text, last.finish_reason) == ("", "stop")
        assert last.stats is not None
        assert last.stats.completion_tokens == 1


def test_a_stop_string_ends_the_answer_within_a_token(engine: Engine) -> None:
    whole = text(run(engine, n_predict=30))
    stop = whole[5:8]
    pieces = run(engine, n_predict=30, stop=[stop])
    assert pieces[-1].finish_reason == "stop"
    assert text(pieces) == whole[: whole.index(stop)]


def test_no_tokens_wanted_means_prefill_only(engine: Engine) -> None:
    (last,) = run(engine, n_predict=0)
    assert (last.text, last.finish_reason) == ("", "length")


def test_a_full_context_is_said(model: Path) -> None:
    with load(model, n_ctx=20) as engine:
        pieces = run(engine, n_predict=-1)
        assert pieces[-1].finish_reason == "context"
        assert len(ids(pieces)) == 20 - 2 + 1  # the last one needs no place any more


def test_a_prompt_that_does_not_fit_is_refused_with_both_counts(model: Path) -> None:
    with load(model, n_ctx=20) as engine:
        with pytest.raises(DotsError, match=r"20 tokens,.* holds 20") as caught:
            engine.generate([1] * 20, GREEDY)
        assert "--ctx-size" in caught.value.hint
        assert len(ids(list(engine.generate([1] * 19, GREEDY)))) == 2


@pytest.mark.parametrize("tokens", [[], [-1], [320], [1, 2**31]])
def test_impossible_prompts_are_refused(engine: Engine, tokens: list[int]) -> None:
    with pytest.raises(DotsError):
        engine.generate(tokens, GREEDY)


# The cache


def test_a_longer_prompt_reuses_the_shorter_one(engine: Engine) -> None:
    tokens = [i * 7 % 256 for i in range(60)]
    fresh = ids(list(engine.generate(tokens, GREEDY, n_predict=8)))
    engine.forget()
    list(engine.generate(tokens[:40], GREEDY, n_predict=3))
    seen: list[tuple[int, int]] = []
    pieces = list(
        engine.generate(tokens, GREEDY, n_predict=8, on_prefill=lambda *counts: seen.append(counts))
    )
    assert ids(pieces) == fresh
    assert pieces[-1].stats is not None
    assert pieces[-1].stats.reused_tokens == 40
    assert seen == [(0, 20), (20, 20)]


def test_the_same_prompt_evaluates_only_its_last_token(engine: Engine) -> None:
    first, second = run(engine), run(engine)
    assert ids(first) == ids(second)
    assert second[-1].stats is not None
    assert second[-1].stats.reused_tokens == second[-1].stats.prompt_tokens - 1


def test_a_prompt_that_differs_in_the_middle_is_evaluated_from_there(engine: Engine) -> None:
    tokens = [i * 7 % 256 for i in range(60)]
    changed = [*tokens[:30], 1, *tokens[31:]]
    fresh = engine.logits(changed)[-1]
    engine.forget()
    list(engine.generate(tokens, GREEDY, n_predict=2))
    pieces = list(engine.generate(changed, GREEDY, n_predict=1))
    assert ids(pieces) == [fresh.argmax()]
    assert pieces[-1].stats is not None
    assert pieces[-1].stats.reused_tokens == 30


def test_a_closed_iterator_leaves_a_usable_cache(engine: Engine) -> None:
    expected = ids(run(engine))
    engine.forget()
    tokens = engine.tokenize(PROMPT, parse_special=True)
    answer = engine.generate(tokens, GREEDY)
    began = [next(answer).token for _ in range(3)]
    answer.close()  # type: ignore[attr-defined]  # an iterator made by a generator
    assert began == expected[:3]
    assert engine.stats.completion_tokens == 3
    assert ids(run(engine)) == expected


def test_the_next_answer_ends_the_one_before(engine: Engine) -> None:
    expected = ids(run(engine))
    first = engine.generate([1, 2, 3], GREEDY)
    next(first)
    assert ids(run(engine)) == expected
    assert list(first) == []


def test_an_answer_nobody_asked_for_costs_nothing(engine: Engine) -> None:
    engine.generate([1, 2], GREEDY)
    assert ids(run(engine))


# Interrupts


def test_an_interrupt_between_tokens_goes_through(engine: Engine) -> None:
    expected = ids(run(engine))
    tokens = engine.tokenize(PROMPT, parse_special=True)
    got = []
    with pytest.raises(KeyboardInterrupt):
        for piece in engine.generate(tokens, GREEDY, n_predict=12):
            got.append(piece.token)
            if len(got) == 4:
                signal.raise_signal(signal.SIGINT)
    assert got == expected[:4]
    assert ids(run(engine)) == expected


def test_an_interrupt_ends_a_prefill_within_its_batch(model: Path) -> None:
    tokens = [i * 7 % 256 for i in range(2000)]
    with load(model, n_ctx=2048, n_batch=2048) as engine:
        whole = ids(list(engine.generate(tokens, GREEDY, n_predict=4)))
        assert engine.stats.prefill_s > 0.05
        engine.forget()
        delay = engine.stats.prefill_s / 3
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        seen: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            list(engine.generate(tokens, GREEDY, on_prefill=lambda done, _all: seen.append(done)))
        assert seen == [0]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        pieces = list(engine.generate(tokens, GREEDY, n_predict=4))
        assert ids(pieces) == whole


def test_an_interrupt_ends_a_load(model: Path) -> None:
    def stop(done: float, total: float) -> None:
        if done > 0.2 * total:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Engine.load(model, EngineOptions(n_threads=1), on_progress=stop)
    with load(model, n_ctx=256) as engine:
        assert ids(run(engine))


def test_an_error_in_a_progress_callback_comes_out(model: Path) -> None:
    def fail(_done: float, _total: float) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Engine.load(model, EngineOptions(n_threads=1), on_progress=fail)
