"""The keys of the file: those of llama.cpp's converter, from config, model card and templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dotscli.errors import DotsError
from dotscli.models.chat_template import chat_template
from dotscli.models.dots1 import Dots1
from dotscli.models.metadata import metadata
from dotscli.models.model_card import front_matter
from dotscli.models.template import DOTS1_TEMPLATE
from dotscli.models.vocab import Vocab
from tests import tiny

CARD = """---
license: mit
license_link: "https://example.org/LICENSE"
base_model: rednote-hilab/dots.llm1.base
pipeline_tag: text-generation
language:
- en
- zh
tags: [chat, 'moe']
widget:
  - text: "skipped: not ours"
---
# A model
license: not-this-one
"""


def keys(folder: Path, **sizes: object) -> dict[str, tuple[str, object]]:
    tiny.write_checkpoint(folder, **sizes)  # type: ignore[arg-type]
    return read(folder)


def read(folder: Path) -> dict[str, tuple[str, object]]:
    model = Dots1.load(folder)
    found = metadata(model, Vocab.load(folder, model), folder, 15)
    assert len({key.key for key in found}) == len(found)
    return {key.key: (key.kind, key.value) for key in found}


def test_hyperparameters(tmp_path: Path) -> None:
    found = keys(tmp_path / "dots.llm1.tiny")
    expected = {
        "block_count": ("u32", 3), "context_length": ("u32", 2048),
        "embedding_length": ("u32", 256), "feed_forward_length": ("u32", 352),
        "attention.head_count": ("u32", 4), "attention.head_count_kv": ("u32", 4),
        "rope.freq_base": ("f32", 1e7), "attention.layer_norm_rms_epsilon": ("f32", 1e-5),
        "expert_count": ("u32", 8), "expert_used_count": ("u32", 3),
        "expert_group_count": ("u32", 1), "expert_group_used_count": ("u32", 1),
        "expert_gating_func": ("u32", 2), "expert_feed_forward_length": ("u32", 160),
        "leading_dense_block_count": ("u32", 1), "expert_shared_count": ("u32", 2),
        "expert_weights_scale": ("f32", 2.5), "expert_weights_norm": ("bool", True),
    }  # fmt: skip
    dots1 = {k.removeprefix("dots1."): v for k, v in found.items() if k.startswith("dots1.")}
    assert dots1 == expected
    assert found["general.architecture"] == ("str", "dots1")
    assert found["general.name"] == ("str", "Dots.Llm1.Tiny")
    assert found["general.size_label"] == ("str", "8x2.0M")
    assert found["general.file_type"] == ("u32", 15)
    assert found["general.quantization_version"] == ("u32", 2)


def test_head_width_is_written_where_the_config_gives_it(tmp_path: Path) -> None:
    found = keys(tmp_path, changes={"head_dim": 64})
    assert found["dots1.attention.key_length"] == ("u32", 64)
    assert found["dots1.attention.value_length"] == ("u32", 64)


def test_tokenizer(tmp_path: Path) -> None:
    found = keys(tmp_path)
    tokenizer = {
        k.removeprefix("tokenizer.ggml."): v for k, v in found.items() if "tokenizer.ggml." in k
    }
    assert tokenizer.pop("tokens")[0] == "arr[str]"
    assert tokenizer.pop("token_type")[0] == "arr[i32]"
    assert tokenizer.pop("merges") == ("arr[str]", tiny.MERGES)
    assert tokenizer == {
        "model": ("str", "gpt2"), "pre": ("str", "qwen2"), "bos_token_id": ("u32", 276),
        "eos_token_id": ("u32", 282), "eot_token_id": ("u32", 282),
        "padding_token_id": ("u32", 276), "add_bos_token": ("bool", False),
        "add_eos_token": ("bool", False),
    }  # fmt: skip


def test_model_card_and_sampling(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    found = read(tmp_path)
    general = {k.removeprefix("general."): v[1] for k, v in found.items() if "general." in k}
    assert general["license"] == "mit"
    assert general["license.link"] == "https://example.org/LICENSE"
    assert general["base_model.count"] == 1
    assert general["base_model.0.name"] == "Dots.Llm1.Base"
    assert general["base_model.0.organization"] == "Rednote Hilab"
    assert general["base_model.0.repo_url"] == (
        "https://huggingface.co/rednote-hilab/dots.llm1.base"
    )
    assert general["tags"] == ("chat", "moe", "text-generation")
    assert general["languages"] == ("en", "zh")
    assert found["general.sampling.temp"] == ("f32", 0.7)
    assert found["general.sampling.top_p"] == ("f32", 0.8)
    assert found["general.sampling.penalty_repeat"] == ("f32", 1.05)


@pytest.mark.parametrize(
    "text",
    ["", "# no front matter\nlicense: mit\n", "---\n", "---\n: :\n- x\n", "\xff\x00binary",
     "---\nlicense: &a mit\nother: *a\nlong: |\n  text\n---\n"],
)  # fmt: skip
def test_model_card_of_any_kind_stops_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="latin-1")
    assert "license" not in front_matter(tmp_path / "README.md")


def test_absurd_sampling_is_refused(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(DotsError, match=r"generation_config\.json: temperature is .hot"):
        read(tmp_path)


def test_template_of_the_checkpoint_is_carried_over(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    assert chat_template(tmp_path) == DOTS1_TEMPLATE
    config.write_text("{}")
    assert chat_template(tmp_path) == DOTS1_TEMPLATE
    config.write_text(json.dumps({"chat_template": "one {{ messages }}"}))
    assert chat_template(tmp_path) == "one {{ messages }}"
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert chat_template(tmp_path) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert chat_template(tmp_path) == "file"


def test_built_in_template_is_known_to_llama_cpp_as_dots() -> None:
    assert "<|endofuserprompt|>" in DOTS1_TEMPLATE


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ([{"name": "rag", "template": "r"}], "no template named default, only: rag"),
        ([], "no template named default"),
        (7, "chat_template is 7"),
        ("x" * ((1 << 20) + 1), "longer than"),
        ("a\0b", "NUL bytes"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_unusable_template_is_refused(template: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(DotsError, match=message):
        chat_template(tmp_path)
