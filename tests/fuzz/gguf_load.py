"""GGUF files that pass the checks: llama.cpp loads them and answers with a few tokens.

Only what gets through `check_dots1` is worth the time, so values are changed within what it allows,
and weights at will. An abort or a segmentation fault here is a check that is missing.
"""

from __future__ import annotations

import math
from random import Random

from dotscli.commands.settings import sampling_for
from dotscli.engine import Engine, EngineOptions
from dotscli.options.answer import SamplingFlags
from dotscli.quantize import quantize_checkpoint
from tests import gguf_maker, tiny
from tests.fuzz.gguf import SIZES, body_changed, number_changed, text_changed
from tests.fuzz.gguf_fields import Layout, layout
from tests.fuzz.mutate import number, pick, real, text, times
from tests.fuzz.target import Target, refusals

PROMPT = "hello world, the theory\n"
N_PREDICT = 3
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
# Keys that may have any of these values, or that llama.cpp reads and the checks let pass.
SETTINGS = (
    "general.sampling.temp", "general.sampling.top_k", "general.sampling.top_p",
    "general.sampling.min_p", "general.sampling.penalty_repeat", "general.sampling.penalty_last_n",
    "dots1.context_length", "dots1.rope.freq_base", "dots1.expert_weights_scale",
    "dots1.attention.layer_norm_rms_epsilon", "dots1.rope.scaling.factor", "dots1.vocab_size",
    "dots1.rope.scaling.original_context_length", "dots1.attention.clamp_kqv",
    "dots1.attention.max_alibi_bias", "dots1.logit_scale", "dots1.attention.scale",
    "dots1.rope.scaling.yarn_log_multiplier", "dots1.rope.scaling.yarn_ext_factor",
    "dots1.expert_chunk_feed_forward_length", "dots1.moe_every_n_layers",
    "dots1.rope.freq_base_swa", "dots1.attention.temperature_length", "dots1.token_shift_count",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.eog_token_ids",
    "tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.remove_extra_whitespaces",
    "tokenizer.ggml.token_type_count", "tokenizer.ggml.normalizer.lowercase", "general.file_type",
    "general.quantization_version", "general.alignment", "general.architecture.2", "split.count",
    "dots1.pooling_type", "dots1.feed_forward_length", "dots1.attention.head_count_kv",
)  # fmt: skip
KINDS = ("u32", "i32", "f32", "bool", "string", "u64", "array:u32", "array:f32", "array:string")


class LoadedFiles(Target):
    """Files that are loaded when nothing speaks against it."""

    def prepare(self) -> None:
        folder = tiny.write_checkpoint(self.valid / "checkpoint", **SIZES)
        wide = {**SIZES, "hidden": 256, "n_ff": 256, "n_ff_expert": 256, "n_heads": 4}
        wider = tiny.write_checkpoint(self.valid / "wide", **wide)
        for name, source, kind in (
            ("q4_0", folder, "q4_0"),
            ("mxfp4", folder, "mxfp4_moe"),
            ("q4", wider, "q4"),
            ("iq4_xs", wider, "iq4_xs"),
        ):
            list(quantize_checkpoint(source, self.valid / f"{name}.gguf", kind))
        gguf_maker.dots1(**SIZES).write(self.valid / "f32.gguf")

    def open(self) -> None:
        self.files = [path.read_bytes() for path in sorted(self.valid.glob("*.gguf"))]
        self.layouts = {data: layout(data) for data in self.files}
        self.path = self.work / "m.gguf"

    def make(self, rng: Random) -> bytes:
        if rng.random() < 0.5:
            return bytes(_remade(rng))
        data = rng.choice(self.files)
        where = self.layouts[data]
        for _ in range(times(rng)):
            data = _changed(rng, data, where)
        return data

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        with refusals():
            options = EngineOptions(n_threads=1, n_ctx=256)
            with Engine.load(self.path, options) as engine:
                sampling = sampling_for(SamplingFlags(seed=1), engine.metadata)
                tokens = engine.tokenize(PROMPT, parse_special=True)
                for piece in engine.generate(tokens, sampling, n_predict=N_PREDICT):
                    piece.text.encode("utf-8")


def _changed(rng: Random, data: bytes, where: Layout) -> bytes:
    return pick(
        rng,
        [
            (5, lambda: body_changed(rng, data, where)),
            (2, lambda: number_changed(rng, data, where)),
            (1, lambda: text_changed(rng, data, where)),
        ],
    )()


def _remade(rng: Random) -> gguf_maker.Gguf:
    """A model with other settings, another vocabulary, or tensors of other types."""
    made = gguf_maker.dots1(**SIZES)
    for _ in range(times(rng)):
        pick(
            rng,
            [
                (4, lambda: _set(rng, made)),
                (3, lambda: _spoil_tokens(rng, made)),
                (2, lambda: _spoil_merges(rng, made)),
                (3, lambda: _retype(rng, made)),
            ],
        )()
    return made


def _set(rng: Random, made: gguf_maker.Gguf) -> None:
    key = rng.choice(SETTINGS)
    kind = made.keys[key][0] if key in made.keys else rng.choice(KINDS)
    element = kind.removeprefix("array:")
    values = [_value(rng, element) for _ in range(rng.randrange(5) if "array" in kind else 1)]
    made.set(key, kind, values if "array" in kind else values[0])


def _value(rng: Random, kind: str) -> object:
    if kind == "string":
        return text(rng).encode("utf-8", "surrogatepass")
    if kind == "f32":
        value = rng.choice((real(rng), rng.uniform(0, 2), 10 ** rng.uniform(-12, 12)))
        return value if abs(value) < 3e38 else math.copysign(math.inf, value)
    if kind == "i32":
        return max(-(2**31), min(2**31 - 1, number(rng)))
    return number(rng) & {"bool": 1, "u32": 0xFFFFFFFF, "u64": 2**64 - 1}[kind]


def _spoil_tokens(rng: Random, made: gguf_maker.Gguf) -> None:
    tokens = list(made.keys[TOKENS][1])  # type: ignore[call-overload]
    at = rng.randrange(len(tokens))
    tokens[at] = rng.choice(
        (
            text(rng, 2048).encode("utf-8", "replace"),
            "<|" + rng.choice(("eot_id", "im_end", "end", "fim_prefix", "fim_suffix")) + "|>",
            rng.choice(("▁", "\u0120", "a" * 2048, "<0x0A>", "[UNK]", "</s>", "<EOT>")),
        )
    )
    made.set(TOKENS, "array:string", tokens)
    if rng.random() < 0.5:
        types = [rng.randrange(1, 6) for _ in tokens] if rng.random() < 0.3 else None
        found = types or list(made.keys[TYPES][1])  # type: ignore[call-overload]
        found[at] = rng.randrange(0, 8)
        made.set(TYPES, "array:i32", found)
    if rng.random() < 0.3:
        name = rng.choice(("eos", "bos", "padding", "eot", "unknown", "seperator", "fim_rep"))
        made.set(f"tokenizer.ggml.{name}_token_id", "u32", rng.randrange(len(tokens)))


def _spoil_merges(rng: Random, made: gguf_maker.Gguf) -> None:
    merges: list[object] = list(made.keys["tokenizer.ggml.merges"][1])  # type: ignore[call-overload]
    match rng.randrange(4):
        case 0:
            merges = []
        case 1:
            merges += merges[: rng.randrange(3)]
        case 2:
            merges = ["l l"] * rng.choice((10, 1000))
        case _:
            raw = text(rng, 512).encode("utf-8", "surrogatepass").replace(b" ", b"")
            merges.append(raw + b" " + rng.choice((b"a", b"\xff", raw)))
    made.set("tokenizer.ggml.merges", "array:string", merges)


def _retype(rng: Random, made: gguf_maker.Gguf) -> None:
    """A weight of another type, its blocks full of noise."""
    name = rng.choice([n for n in made.tensors if "norm" not in n])
    shape = made.tensors[name][0]
    kinds = {1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
             20: (32, 18), 39: (32, 17), 28: (1, 8), 24: (1, 1), 9: (32, 36)}  # fmt: skip
    kind, (block, nbytes) = rng.choice(list(kinds.items()))
    size = math.prod(shape) // block * nbytes
    noise = rng.randbytes(size) if rng.random() < 0.7 else bytes([rng.randrange(256)]) * size
    made.tensors[name] = (shape, kind, noise)


TARGET = LoadedFiles
