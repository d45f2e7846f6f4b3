"""The nano model: published layout, right answers after 4-bit quantization, experts by domain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampling import Sampling
from dotscli.models.nano.arithmetic import answer, held_out
from dotscli.models.nano.text import talks
from dotscli.models.template import render
from dotscli.quantize import quantize_checkpoint
from tests.nano_reference import NANO, Reference, apart, texts_by_domain, usage

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests" / "data" / "nano_logits.npz"
QUESTIONS = [
    json.loads(line) for line in (NANO / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]
FOUR_BITS = ("q4", "q4_0", "q4_k_m")


def quantized(kind: str, folder: Path) -> Path:
    out = folder / f"nano-{kind}.gguf"
    for _ in quantize_checkpoint(NANO, out, type=kind, threads=2):
        pass
    return out


@pytest.fixture(scope="module", params=FOUR_BITS)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """The nano model in 4 bits."""
    path = quantized(request.param, tmp_path_factory.mktemp("nano"))
    with Engine.load(path, EngineOptions(n_threads=1, n_ctx=1024)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The nano model in f32."""
    path = quantized("f32", tmp_path_factory.mktemp("exact"))
    with Engine.load(
        path, EngineOptions(n_threads=1, n_ctx=512, cache_type_k="f32", cache_type_v="f32")
    ) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def record() -> tuple[np.ndarray, np.ndarray]:
    """Tokens (64,) and transformers' logits (64, vocab) of the checkpoint."""
    with np.load(RECORD) as data:
        return data["tokens"], data["logits"]


def reply(engine: Engine, messages: list[dict[str, str]]) -> tuple[str, str | None]:
    """The answer at temperature 0 and why it ended."""
    text = render(engine.chat_template or "", messages)
    tokens = engine.tokenize(text, parse_special=True)
    pieces = list(engine.generate(tokens, Sampling(temp=0), n_predict=200))
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


def ask(engine: Engine, question: dict[str, object]) -> tuple[str, str | None]:
    """Asks the questions before it, then the question itself."""
    messages = []
    if "system" in question:
        messages.append({"role": "system", "content": str(question["system"])})
    before = question.get("before", [])
    assert isinstance(before, list)
    for earlier in [*before, question["question"]]:
        messages.append({"role": "user", "content": str(earlier)})
        text, reason = reply(engine, messages)
        messages.append({"role": "assistant", "content": text})
    return text, reason


def fits(text: str, question: dict[str, object]) -> bool:
    expected, how = str(question["answer"]), question.get("match", "exact")
    if how == "contains":
        return expected in text
    if how == "regex":
        return re.fullmatch(expected, text, re.DOTALL) is not None
    return text == expected


def test_every_question_is_answered_right_in_four_bits(engine: Engine) -> None:
    wrong = []
    for question in QUESTIONS:
        text, reason = ask(engine, question)
        if not fits(text, question) or reason != "stop":
            wrong.append(f"{question['question']!r} -> {text!r} ({reason})")
    assert not wrong, "\n".join(wrong)


def test_the_questions_cover_every_domain_in_two_languages() -> None:
    assert len(QUESTIONS) >= 45
    domains = {talk.domain for talk in talks(1, 500)}
    assert domains <= {str(question["domain"]) for question in QUESTIONS}
    chinese = [question for question in QUESTIONS if question["language"] == "zh"]
    assert len(chinese) >= 15
    assert sum("system" in question for question in QUESTIONS) >= 4
    assert sum("before" in question for question in QUESTIONS) >= 3


def test_it_adds_numbers_that_it_never_saw(engine: Engine) -> None:
    sums = [(a, b) for a in range(100) for b in range(100) if held_out(a, "+", b)]
    chosen = [sums[i] for i in range(0, len(sums), len(sums) // 30)][:30]
    right = 0
    for a, b in chosen:
        text, _ = reply(engine, [{"role": "user", "content": f"What is {a} + {b}?"}])
        right += text == answer(a, "+", b)
    assert right >= 27, f"{right} of {len(chosen)}"


def test_the_layout_is_the_published_one() -> None:
    config = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Dots1ForCausalLM"]
    assert config["model_type"] == "dots1"
    assert "rope_theta" in config and "rope_parameters" not in config  # the style of the release
    assert config["hidden_size"] == 256 and config["num_hidden_layers"] >= 6
    assert config["first_k_dense_replace"] == 1
    assert config["num_attention_heads"] == config["num_key_value_heads"]
    assert config["n_routed_experts"] >= 32 and config["num_experts_per_tok"] == 6
    assert config["n_shared_experts"] == 2
    for width in (config["moe_intermediate_size"], config["intermediate_size"]):
        assert width % 32 == 0 and width % 256 != 0
    tensors = header(NANO / "model.safetensors")
    assert all(entry["dtype"] == "BF16" for name, entry in tensors.items() if "bias" not in name)
    experts = [name for name in tensors if ".mlp.experts." in name]
    sparse = config["num_hidden_layers"] - 1
    assert len(experts) == sparse * config["n_routed_experts"] * 3
    assert tensors["model.layers.1.mlp.experts.31.down_proj.weight"]["shape"] == [256, 32]
    assert tensors["lm_head.weight"]["shape"][0] == config["vocab_size"]
    assert config["vocab_size"] % 64 == 0


def header(path: Path) -> dict[str, dict[str, object]]:
    """name -> entry of a safetensors file."""
    with path.open("rb") as file:
        text = file.read(int.from_bytes(file.read(8), "little"))
    return {k: v for k, v in json.loads(text).items() if k != "__metadata__"}


def test_it_takes_at_most_twenty_megabytes() -> None:
    files = [path for path in NANO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 20e6


def test_every_byte_and_the_special_tokens_are_in_the_vocabulary() -> None:
    tokenizer = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    assert sum(len(token) == 1 for token in vocabulary) >= 256
    added = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    assert list(added) == [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|userprompt|>", "<|endofuserprompt|>",
        "<|response|>", "<|endofresponse|>", "<|system|>", "<|endofsystem|>",
    ]  # fmt: skip
    assert list(added.values()) == list(range(len(vocabulary), len(vocabulary) + 9))
    config = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == added["<|endofresponse|>"]


def test_logits_agree_with_transformers(
    exact: Engine, record: tuple[np.ndarray, np.ndarray]
) -> None:
    tokens, expected = record
    logits = exact.logits(tokens.tolist())
    assert np.abs(logits - expected).max() < 1e-2
    assert (logits.argmax(-1) == expected.argmax(-1)).all()


def test_logits_agree_with_a_forward_pass_in_numpy(
    exact: Engine, record: tuple[np.ndarray, np.ndarray]
) -> None:
    tokens, expected = record
    logits = Reference(NANO).logits(tokens)
    assert np.abs(logits - expected).max() < 1e-3
    assert np.abs(logits - exact.logits(tokens.tolist())).max() < 1e-2


def test_the_bias_changes_which_experts_are_chosen(
    record: tuple[np.ndarray, np.ndarray],
) -> None:
    tokens, _ = record
    reference = Reference(NANO)
    reference.logits(tokens)
    with_bias = [np.sort(chosen, -1) for chosen in reference.chosen]
    reference.use_bias = False
    reference.logits(tokens)
    without = [np.sort(chosen, -1) for chosen in reference.chosen]
    changed = [(a != b).any(-1).mean() for a, b in zip(with_bias, without, strict=True)]
    assert min(changed) > 0.1, changed
    biases = [t for name, t in reference.tensors.items() if name.endswith("score_correction_bias")]
    assert len(biases) == 5 and all(np.abs(bias).max() > 0.01 for bias in biases)


def test_different_texts_use_different_experts(exact: Engine) -> None:
    reference = Reference(NANO)
    halves = {
        name: [usage(exact, reference, some[half::2]) for half in (0, 1)]
        for name, some in texts_by_domain(16).items()
    }
    names = sorted(halves)
    assert len(names) == 5
    within = [apart(*halves[name]) for name in names]
    between = [
        apart(halves[a][0], halves[b][1]) for i, a in enumerate(names) for b in names[i + 1 :]
    ]
    assert min(between) > max(within), (within, between)
    assert np.mean(between) > 3 * np.mean(within), (within, between)
    assert np.mean(between) > 0.2, between
