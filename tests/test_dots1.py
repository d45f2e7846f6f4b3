"""What a dots.llm1 is: hyperparameters out of config.json, and the names of all its tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.models.metadata import size_label
from dotscli.models.tensors import Naming, naming_of
from tests import tiny

# config.json of the published base model.
REAL = {
    **tiny.config(
        n_layers=62, hidden=4096, n_heads=32, n_ff=10944, n_ff_expert=1408, n_experts=128,
        n_experts_used=6, vocab_size=152064, n_ctx=32768,
    ),
    "eos_token_id": 151643,
    "scoring_func": "noaux_tc",
}  # fmt: skip

REQUIRED = (
    "model_type", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "n_routed_experts", "n_shared_experts",
    "num_experts_per_tok", "first_k_dense_replace", "routed_scaling_factor", "norm_topk_prob",
    "rms_norm_eps", "rope_theta", "max_position_embeddings", "vocab_size",
)  # fmt: skip


def read(**changes: object) -> Dots1:
    return Dots1.from_config(tiny.config() | changes, "config.json")


def test_real_model_has_the_published_numbers() -> None:
    model = Dots1.from_config(REAL, "config.json")
    specs = model.tensors()
    assert (model.head_dim, model.n_dense_layers, model.expert_scale) == (128, 1, 2.5)
    assert (model.expert_norm, model.rope_theta, model.eos_ids) == (True, 1e7, (151643,))
    assert len(specs) == 990
    assert sum(len(spec.sources) for spec in specs) == 24_231
    assert sum(spec.n_elements for spec in specs) == 142_774_381_696
    assert size_label(model) == "128x8.7B"


def test_new_style_config_reads_as_the_old_one() -> None:
    old = tiny.config()
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_theta": 10000000.0, "rope_type": "default"}
    new["dtype"] = new.pop("torch_dtype")
    new |= {"layer_types": ["full_attention"] * 3, "max_window_layers": 62, "n_group": 1,
            "topk_group": 1, "output_router_logits": False}  # fmt: skip
    assert Dots1.from_config(new, "new") == Dots1.from_config(old, "old")


@pytest.mark.parametrize("scoring", ["noaux_tc", "sigmoid", None])
@pytest.mark.parametrize("topk_method", ["noaux_tc", None])
def test_published_states_of_scoring_func_all_mean_sigmoid(
    scoring: str | None, topk_method: str | None
) -> None:
    config = tiny.config(changes={"scoring_func": scoring, "topk_method": topk_method})
    assert Dots1.from_config(config, "config.json").gating_func == 2


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_an_error_and_never_a_default(key: str) -> None:
    for config in (tiny.config(changes={key: None}), tiny.config() | {key: None}):
        with pytest.raises(DotsError, match=rf"the/config\.json.*{key}"):
            Dots1.from_config(config, "the/config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "256"),
        ("hidden_size", 256.0),
        ("hidden_size", True),
        ("hidden_size", 0),
        ("hidden_size", 250),  # no multiple of the heads
        ("hidden_size", 10**30),
        ("num_hidden_layers", 513),
        ("n_routed_experts", 1),
        ("n_routed_experts", 513),
        ("num_experts_per_tok", 9),
        ("n_shared_experts", 0),
        ("first_k_dense_replace", 4),
        ("first_k_dense_replace", -1),
        ("norm_topk_prob", 1),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", "1e7"),
        ("rope_theta", float("inf")),
        ("vocab_size", 1 << 30),
        ("num_key_value_heads", 2),  # GQA: llama.cpp can't load it
        ("model_type", "deepseek_v3"),
        ("architectures", ["DeepseekV3ForCausalLM"]),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("tie_word_embeddings", True),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention", "full_attention"]),
        ("layer_types", ["full_attention"]),
        ("moe_layer_freq", 2),
        ("scoring_func", "softmax"),
        ("scoring_func", 2),
        ("topk_method", "greedy"),
        ("n_group", 3),
        ("head_dim", 63),
        ("eos_token_id", 320),
        ("eos_token_id", [276, -1]),
        ("bos_token_id", "276"),
        ("rope_scaling", {"type": "yarn", "factor": 4}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e7, "factor": 2}),
        ("rope_parameters", {"rope_theta": 1e7, "partial_rotary_factor": 0.5}),
    ],
)
def test_wrong_value_is_named_with_its_file(key: str, value: object) -> None:
    with pytest.raises(DotsError) as caught:
        Dots1.from_config(tiny.config() | {key: value}, "the/config.json")
    assert "the/config.json" in caught.value.message
    named = {"head_dim": "head width", "rope_parameters": "ro"}.get(key, key)
    assert named in caught.value.message


def test_window_that_reaches_no_layer_is_no_window() -> None:
    assert read(sliding_window=4096, use_sliding_window=False).n_layers == 3
    changes = {"sliding_window": 4096, "use_sliding_window": None, "max_window_layers": 62}
    assert read(**changes).n_layers == 3
    with pytest.raises(DotsError, match="sliding_window is 4096"):
        read(**changes | {"max_window_layers": 1})


def test_groups_and_head_width_are_taken_from_the_config() -> None:
    model = read(n_group=4, topk_group=2, head_dim=32)
    assert (model.expert_groups, model.expert_groups_used) == (4, 2)
    shapes = {spec.name: spec.shape for spec in model.tensors()}
    assert shapes["blk.0.attn_q.weight"] == (128, 256)
    assert shapes["blk.0.attn_output.weight"] == (256, 128)
    assert shapes["blk.0.attn_q_norm.weight"] == (32,)


@pytest.mark.parametrize(
    "groups",
    [{"n_group": 8, "topk_group": 8}, {"n_group": 4, "topk_group": 1}, {"n_group": 4}],
)
def test_groups_that_can_not_route_are_refused(groups: dict[str, int]) -> None:
    with pytest.raises(DotsError, match="group"):
        read(**groups)


def test_names_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    model = read()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DOTS1, model.n_layers)
    for spec in model.tensors(Naming.FUSED_WEIGHT):
        if "ffn_gate_exps" in spec.name or "ffn_up_exps" in spec.name:
            continue  # halves of one fused tensor, a name that the package does not have for dots1
        hf = spec.sources[0].name.replace("e_score_correction_bias", "e_score_correction.bias")
        assert names.get_name(hf, try_suffixes=(".weight", ".bias")) == spec.name


def test_every_tensor_of_a_checkpoint_is_used_once() -> None:
    config = tiny.config(n_dense_layers=2)
    model = Dots1.from_config(config, "config.json")
    for style, naming in (("per-expert", Naming.PER_EXPERT), ("fused", Naming.FUSED)):
        shapes = tiny.tensor_shapes(config, style)
        assert naming_of(shapes) is naming
        sources = [source for spec in model.tensors(naming) for source in spec.sources]
        assert {source.name: source.shape for source in sources} == shapes
        n_weights = sum(spec.n_elements for spec in model.tensors(naming))
        assert n_weights == sum(_product(shape) for shape in shapes.values())


def test_fused_names_may_end_in_weight() -> None:
    assert naming_of(["a", "model.layers.1.mlp.experts.down_proj.weight"]) is Naming.FUSED_WEIGHT
    names = {s.name for spec in read().tensors(Naming.FUSED_WEIGHT) for s in spec.sources}
    assert "model.layers.1.mlp.experts.gate_up_proj.weight" in names


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "holds no config.json"),
        (lambda path: path.write_text("{"), "not valid JSON"),
        (lambda path: path.write_text("[1]"), "holds a list"),
        (lambda path: path.write_text('{"a": 1, "a": 2}'), '"a" appears twice'),
        (lambda path: path.write_text('{"a": NaN}'), "NaN is not a JSON value"),
        (lambda path: path.write_bytes(b'{"a": "\xff"}'), "not valid JSON"),
        (lambda path: path.write_text("[" * 100_000), "nested too deeply"),
        (lambda path: path.write_text(" " * (1 << 24) + "{}"), "the limit"),
        (lambda path: path.mkdir(), "is a folder, not a file"),
    ],
)
def test_unreadable_config(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    write(tmp_path / "config.json")
    with pytest.raises(DotsError, match=message):
        Dots1.load(tmp_path)


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
