"""The nano model in torch: dots.llm1's forward pass, written so that it trains on a CPU.

All routed experts of a layer are one wide MLP whose hidden columns are multiplied by the routing
weight of their expert (zero where the expert was not chosen). The result is that of running only
the chosen experts; on a CPU one wide bf16 matmul is several times faster than 32 narrow ones.
Development only: torch is no dependency of the package. Knows nothing of text or training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the nano model, named as in the published config.json."""

    vocab_size: int = 2816
    hidden_size: int = 256
    num_hidden_layers: int = 6
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    intermediate_size: int = 736
    moe_intermediate_size: int = 32
    n_routed_experts: int = 32
    n_shared_experts: int = 2
    num_experts_per_tok: int = 6
    routed_scaling_factor: float = 2.5
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def fake_q4(weight: Tensor, input_dim: int) -> Tensor:
    """Round to Q4_0's grid (32 weights a block, scale = extreme / -8), gradient straight through.

    ``input_dim`` is the dimension along which a row lies in the file.
    """
    with torch.no_grad():
        w = weight.detach().movedim(input_dim, -1)
        blocks = w.reshape(*w.shape[:-1], -1, 32)
        index = blocks.abs().argmax(-1, keepdim=True)
        scale = blocks.gather(-1, index) / -8
        inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
        rounded = (blocks * inverse + 8.5).floor_().clamp_(0, 15).sub_(8).mul_(scale)
        delta = (rounded.reshape(w.shape) - w).movedim(-1, input_dim)
    return weight + delta


class Norm(nn.Module):
    """RMSNorm in f32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Block(nn.Module):
    """One layer: attention with QK-norm, then the dense MLP or the experts."""

    def __init__(self, shape: Shape, index: int) -> None:
        super().__init__()
        s, d = shape, shape.hidden_size
        self.shape, self.sparse = s, index >= s.first_k_dense_replace
        self.input_norm, self.post_norm = Norm(d, s.rms_norm_eps), Norm(d, s.rms_norm_eps)
        self.q_norm, self.k_norm = (
            Norm(s.head_dim, s.rms_norm_eps),
            Norm(s.head_dim, s.rms_norm_eps),
        )
        self.qkv = nn.Parameter(torch.randn(3, d, d) * d**-0.5)
        self.o = nn.Parameter(torch.zeros(d, d))
        # (out, in) for gate and up; down is kept as (in, out)
        width = s.n_shared_experts * s.moe_intermediate_size if self.sparse else s.intermediate_size
        self.gate_up = nn.Parameter(torch.randn(2, width, d) * d**-0.5)
        self.down = nn.Parameter(torch.zeros(width, d))
        if self.sparse:
            n, f = s.n_routed_experts, s.moe_intermediate_size
            self.expert_gate = nn.Parameter(torch.randn(n, f, d) * d**-0.5)
            self.expert_up = nn.Parameter(torch.randn(n, f, d) * d**-0.5)
            self.expert_down = nn.Parameter(torch.zeros(n, f, d))
            self.router = nn.Parameter(torch.randn(n, d) * 0.5 * d**-0.5)
            self.register_buffer("bias", torch.zeros(n))
            self.register_buffer("load", torch.zeros(n), persistent=False)
            self.spread: Tensor | None = None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        q4: bool,
        talks: Tensor | None,
    ) -> Tensor:
        x = x + self._attention(self.input_norm(x), rope, mask, q4)
        h = self.post_norm(x)
        gate_up = fake_q4(self.gate_up, 2) if q4 else self.gate_up
        down = fake_q4(self.down, 0) if q4 else self.down
        gu = F.linear(h, gate_up.flatten(0, 1))
        gate, up = gu.chunk(2, -1)
        out = F.linear(F.silu(gate) * up, down.t())
        if self.sparse:
            out = out + self._experts(h, q4)
            self.spread = None if talks is None else self._spread(h.detach().flatten(0, 1), talks)
        return x + out

    def _attention(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, q4: bool
    ) -> Tensor:
        n, t, d = x.shape
        qkv = F.linear(x, (fake_q4(self.qkv, 2) if q4 else self.qkv).flatten(0, 1))
        heads = qkv.view(n, t, 3, self.shape.num_attention_heads, self.shape.head_dim)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope)
        y = F.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, is_causal=mask is None
        )
        return F.linear(y.transpose(1, 2).reshape(n, t, d), fake_q4(self.o, 1) if q4 else self.o)

    def _experts(self, h: Tensor, q4: bool) -> Tensor:
        n, t, d = h.shape
        flat = h.view(n * t, d)
        weights = self.route(flat)
        if q4:
            gate, up = fake_q4(self.expert_gate, 2), fake_q4(self.expert_up, 2)
            down = fake_q4(self.expert_down, 1)
        else:
            gate, up, down = self.expert_gate, self.expert_up, self.expert_down
        hidden = F.silu(F.linear(flat, gate.flatten(0, 1))) * F.linear(flat, up.flatten(0, 1))
        f = self.shape.moe_intermediate_size
        hidden = hidden.view(n * t, -1, f) * weights.to(hidden.dtype)[:, :, None]
        return F.linear(hidden.flatten(1), down.flatten(0, 1).t()).view(n, t, d)

    def _spread(self, flat: Tensor, talks: Tensor) -> Tensor:
        """What a conversation does not tell of the experts used in it, in nats (negative).

        Mean entropy of the experts used within one conversation less that of all text: the
        negative mutual information of conversation and expert. Held down, it makes experts
        specialise. ``talks`` (N,) numbers the conversation of each token; only the router learns.
        """
        with torch.autocast("cpu", enabled=False):
            scores = torch.sigmoid(flat.float() @ self.router.t()).square()
            share = scores / scores.sum(-1, keepdim=True)
            sums = torch.zeros(int(talks.max()) + 1, share.shape[-1]).index_add(0, talks, share)
            counts = torch.bincount(talks)
            usage = sums / counts[:, None]
            entropy = -(usage * torch.log(usage + 1e-9)).sum(-1)
            overall = share.mean(0)
            whole = -(overall * torch.log(overall + 1e-9)).sum()
            return (entropy * counts).sum() / counts.sum() - whole

    def route(self, flat: Tensor) -> Tensor:
        """(N, d) -> (N, n_experts) weights, zero where not chosen; the bias only selects."""
        with torch.autocast("cpu", enabled=False):
            scores = torch.sigmoid(flat.float() @ self.router.t())
            chosen = (scores + self.bias).topk(self.shape.num_experts_per_tok, -1).indices
            picked = torch.zeros_like(scores).scatter_(-1, chosen, 1.0)
            if self.training:
                self.load += picked.sum(0)
            weights = scores * picked
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
            return weights * self.shape.routed_scaling_factor


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """NEOX rotation of (..., T, head_dim) by cos and sin (T, head_dim / 2)."""
    cos, sin = rope
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Nano(nn.Module):
    """Token ids (B, T) -> logits (B, T, vocab) or, with ``select``, logits of those positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.05)
        self.head = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.01)
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.blocks = nn.ModuleList(Block(shape, i) for i in range(shape.num_hidden_layers))

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        half = self.shape.head_dim // 2
        freq = self.shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.arange(length, dtype=torch.float32)[:, None] * freq
        return angle.cos(), angle.sin()

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        select: Tensor | None = None,
        q4: bool = False,
        talks: Tensor | None = None,
    ) -> Tensor:
        rope = self.rope(ids.shape[1])
        x = F.embedding(ids, fake_q4(self.embed, 1) if q4 else self.embed)
        for block in self.blocks:
            x = block(x, rope, mask, q4, talks)
        x = self.norm(x)
        if select is not None:
            x = x.flatten(0, 1)[select]
        return F.linear(x, self.head)

    def sparse_blocks(self) -> list[Block]:
        return [b for b in self.blocks if isinstance(b, Block) and b.sparse]
