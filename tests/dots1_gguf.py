"""Tiny dots1 GGUF files with random weights, in any ggml type, and llama.cpp runs over them.

Written with gguf.GGUFWriter and ggml's own quantizer, so that a test of the backend depends on
neither the package's converter nor its engine. `Run` drives llama_cpp's low-level API: a batch in,
its logits out.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from dotscli.hot.backend import library
from dotscli.hot.backend.plugin import HotModel
from tests import tiny

READ, MAPPED = 0, 1  # enum llama_load_mode
SILENT = llama_cpp.llama_log_callback(lambda *_: None)
Type = gguf.GGMLQuantizationType
NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}


def ggml_base() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    library = ctypes.CDLL(str(next((Path(spec.origin).parent / "lib").glob("libggml-base.*0"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library


def find_device(name: str) -> int:
    path = library.llama_path()
    assert path
    llama = ctypes.CDLL(str(path))
    llama.ggml_backend_dev_by_name.restype = ctypes.c_void_p
    return int(llama.ggml_backend_dev_by_name(name.encode()))


@contextmanager
def log() -> Iterator[list[str]]:
    """What llama.cpp says meanwhile, piece by piece; afterwards it is silent."""
    pieces: list[str] = []
    listening = llama_cpp.llama_log_callback(lambda _level, text, _: pieces.append(text.decode()))
    llama_cpp.llama_log_set(listening, None)
    yield pieces
    llama_cpp.llama_log_set(SILENT, None)


def quantize(values: np.ndarray, qtype: Type) -> np.ndarray:
    """float32 [..., n] -> bytes [..., row size] of a ggml type."""
    values = np.ascontiguousarray(values, np.float32)
    if qtype == Type.F32:
        return values
    block, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    n = values.shape[-1]
    assert n % block == 0, f"{n} is no multiple of {block}"
    out = np.zeros((*values.shape[:-1], n // block * nbytes), np.uint8)
    written = ggml_base().ggml_quantize_chunk(
        qtype, values.ctypes.data, out.ctypes.data, 0, values.size // n, n, None
    )
    assert written == out.nbytes
    return out


def gguf_name(hf_name: str) -> str:
    stem, suffix = hf_name.rsplit(".", 1)
    if stem.endswith("e_score_correction_bias") or suffix == "e_score_correction_bias":
        return f"blk.{hf_name.split('.')[2]}.exp_probs_b.bias"
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def header(path: Path, cfg: Mapping[str, object]) -> gguf.GGUFWriter:
    """A writer that has the metadata of a model; its tensors come next. The text is nonsense."""
    writer = gguf.GGUFWriter(path, "dots1")
    writer.add_block_count(int(str(cfg["num_hidden_layers"])))
    writer.add_context_length(int(str(cfg["max_position_embeddings"])))
    writer.add_embedding_length(int(str(cfg["hidden_size"])))
    writer.add_feed_forward_length(int(str(cfg["intermediate_size"])))
    writer.add_expert_feed_forward_length(int(str(cfg["moe_intermediate_size"])))
    writer.add_head_count(int(str(cfg["num_attention_heads"])))
    writer.add_head_count_kv(int(str(cfg["num_attention_heads"])))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e7)
    writer.add_vocab_size(int(str(cfg["vocab_size"])))
    writer.add_expert_count(int(str(cfg["n_routed_experts"])))
    writer.add_expert_used_count(int(str(cfg["num_experts_per_tok"])))
    writer.add_expert_shared_count(int(str(cfg["n_shared_experts"])))
    writer.add_leading_dense_block_count(int(str(cfg["first_k_dense_replace"])))
    writer.add_expert_weights_scale(2.5)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    n_vocab = int(str(cfg["vocab_size"]))
    merged = [merge.replace(" ", "") for merge in tiny.MERGES]
    tokens = [*tiny.byte_letters(), *merged, *tiny.SPECIAL_TOKENS]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), n_vocab)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * n_vocab)
    writer.add_token_merges(list(tiny.MERGES))
    writer.add_eos_token_id(276)
    writer.add_add_bos_token(False)
    return writer


def write_model(
    path: Path, up: Type = Type.Q8_0, down: Type | None = None, *, seed: int = 0, **sizes: object
) -> Path:
    """Write a model whose routed experts have the types `up` (gate too) and `down`."""
    cfg = tiny.config(**sizes)  # type: ignore[arg-type]  # checked by config itself
    tensors = tiny.weights(cfg, seed)
    prefixes = sorted({n.split(".experts.")[0] for n in tensors if ".mlp.experts." in n})
    n_experts = int(str(cfg["n_routed_experts"]))
    writer = header(path, cfg)
    for name, values in tensors.items():
        if ".mlp.experts." not in name:
            writer.add_tensor(gguf_name(name), values)
    for prefix in prefixes:
        layer = prefix.split(".")[2]
        for part in ("up", "gate", "down"):
            stacked = np.stack(
                [tensors[f"{prefix}.experts.{e}.{part}_proj.weight"] for e in range(n_experts)]
            )
            qtype = up if part != "down" or down is None else down
            writer.add_tensor(
                f"blk.{layer}.ffn_{part}_exps.weight", quantize(stacked, qtype), raw_dtype=qtype
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Run:
    """A model and a context. `hot` is an opened HotModel, or None for stock llama.cpp.

    Stock keeps its weights in ggml's plain layout (no extra buffer types): the reference whose
    kernels are the same.
    """

    def __init__(
        self,
        path: Path,
        hot: HotModel | None = None,
        *,
        n_ctx: int = 1024,
        n_threads: int = 1,
        dense_on: str | None = None,
        use_mmap: bool = True,
        extra: bool = False,
        op_offload: bool = True,
        eval_callback: Callable[[str, bool], bool] | None = None,
        beside: Run | None = None,
    ) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 99 if dense_on else 0
        params.load_mode = MAPPED if use_mmap else READ
        params.use_extra_bufts = extra
        # Without such a list llama.cpp takes every device of the process.
        self.devices = (ctypes.c_void_p * 2)(find_device(dense_on) if dense_on else None, None)
        params.devices = ctypes.cast(self.devices, ctypes.c_void_p)
        if hot is not None:
            params.tensor_buft_overrides = ctypes.cast(hot.overrides, ctypes.c_void_p)
        self.hot = hot
        self.owns_model = beside is None
        if beside is not None:  # a second context of the same model
            self.model = beside.model
        else:
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if hot is not None:
            hot.loaded()
        assert self.model, f"llama.cpp can't load {path}"
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = n_ctx
        context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = n_threads
        context.op_offload = op_offload
        if eval_callback is not None:
            context.cb_eval = self._callback(eval_callback)
        self.ctx = llama_cpp.llama_init_from_model(self.model, context)
        assert self.ctx
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.position = 0

    def _callback(self, wanted: Callable[[str, bool], bool]) -> object:
        get_name = ggml_base().ggml_get_name
        get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]

        def call(tensor: int, ask: bool, _user_data: object) -> bool:
            return wanted(get_name(tensor).decode(), ask)

        self.kept = llama_cpp.ggml_backend_sched_eval_callback(call)
        return self.kept

    def decode(self, tokens: Sequence[int], *, outputs: bool = True) -> np.ndarray:
        """Logits of every token, float32 [n_tokens, n_vocab]; of none if no outputs are wanted."""
        assert self.try_decode(tokens, outputs=outputs) == 0
        return self.logits(len(tokens) if outputs else 0)

    def logits(self, n: int) -> np.ndarray:
        """Those of the last batch, which had so many outputs: float32 [n, n_vocab]."""
        if n == 0:
            return np.empty((0, self.n_vocab), np.float32)
        logits = llama_cpp.llama_get_logits(self.ctx)
        return np.ctypeslib.as_array(logits, (n, self.n_vocab)).copy()

    def try_decode(self, tokens: Sequence[int], *, outputs: bool = True) -> int:
        """What llama_decode says: 0 if it went well."""
        n = len(tokens)
        batch = llama_cpp.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = outputs
        status = int(llama_cpp.llama_decode(self.ctx, batch))
        llama_cpp.llama_batch_free(batch)
        self.position += n if status == 0 else 0
        return status

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), True)
        self.position = 0

    def close(self) -> None:
        llama_cpp.llama_free(self.ctx)
        if self.owns_model:
            llama_cpp.llama_model_free(self.model)
        if self.hot is not None:
            self.hot.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batches(sizes: Sequence[int], n_vocab: int = 256, seed: int = 1) -> Iterator[list[int]]:
    """Random tokens, one batch for each size."""
    rng = np.random.default_rng(seed)
    for n in sizes:
        yield rng.integers(0, n_vocab, n).tolist()
