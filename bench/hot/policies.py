"""Which experts are resident while tokens go by: policies that replay a trace, layer by layer.

A trace is int [tokens, layers, experts per token]. Every layer has the same number of slots. An
expert counts as a hit if it was resident before its token came: uploads help from the next token
on, and what is missing is computed on the CPU meanwhile. All layers are stepped at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dotscli.hot.exchange import Frequencies, Rule, exchanges

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

NEVER = np.iinfo(np.int64).max // 2


@dataclass(frozen=True)
class Replay:
    """What happened: experts missed and experts uploaded, int [tokens, layers]."""

    misses: Ints
    uploads: Ints
    n_used: int

    @property
    def hit_rate(self) -> float:
        """Part of all expert calls that found their expert resident."""
        return 1 - float(self.misses.mean()) / self.n_used

    @property
    def uploads_per_token(self) -> float:
        """Experts copied to the device per token, over all layers."""
        return float(self.uploads.sum(axis=1).mean())


class Policy:
    """Static: what is resident at the start stays. The others override `step`.

    Args:
        heat: [layers, experts] counts that are known before the first token.
        n_slots: residents per layer.
    """

    def __init__(self, heat: Floats, n_slots: int) -> None:
        self.n_slots = min(n_slots, heat.shape[1])
        self.heat = heat
        self.rows = np.arange(len(heat))[:, None]
        self.resident: Bools = self.top(heat)

    def top(self, scores: Floats) -> Bools:
        """The n_slots experts of the highest scores in every layer; lower ids among equals."""
        chosen = np.zeros(scores.shape, np.bool_)
        if self.n_slots:
            order = np.argsort(-scores, axis=1, kind="stable")[:, : self.n_slots]
            chosen[self.rows, order] = True
        return chosen

    def prepare(self, trace: Ints) -> None:
        """A look at the future, for those that may."""

    def step(self, ids: Ints) -> Ints:
        """After a token that used ids [layers, n_used]: exchange, and say how many per layer."""
        return np.zeros(len(ids), np.int64)

    def become(self, wanted: Bools) -> Ints:
        """Make exactly these resident; the number of uploads per layer."""
        uploads = (wanted & ~self.resident).sum(axis=1)
        self.resident = wanted
        return uploads


class Lru(Policy):
    """Every expert that is missed comes in at once, in place of the one unused for longest."""

    def __init__(self, heat: Floats, n_slots: int) -> None:
        super().__init__(heat, n_slots)
        # At the start the hottest count as the most recently used.
        rank = np.argsort(np.argsort(-heat, axis=1, kind="stable"), axis=1)
        self.last = -rank.astype(np.float64)
        self.now = 0

    def step(self, ids: Ints) -> Ints:
        # Within a token the first choice of the router is the most recent.
        self.now += 1
        self.last[self.rows, ids] = self.now + np.linspace(0.9, 0.1, ids.shape[1])
        return self.become(self.top(self.last))


class DecayedLfu(Policy):
    """The experts of the highest counts, which halve every `half_life` tokens; no limit.

    `prior` is how many tokens the heat known before weighs.
    """

    def __init__(
        self, heat: Floats, n_slots: int, half_life: float = 256, prior: float = 64
    ) -> None:
        super().__init__(heat, n_slots)
        self.decay = 0.5 ** (1 / half_life)
        self.prior, self.counts = prior, heat.astype(np.float64)

    def prepare(self, trace: Ints) -> None:
        total = np.maximum(self.counts.sum(axis=1, keepdims=True), 1e-9)
        self.counts = self.counts / total * trace.shape[2] * self.prior

    def count(self, ids: Ints) -> None:
        """Decay, then add what the token used."""
        self.counts *= self.decay
        self.counts[self.rows, ids] += 1

    def step(self, ids: Ints) -> Ints:
        self.count(ids)
        return self.become(self.top(self.counts))


class Admitted(Policy):
    """What `dotscli.hot.exchange` does: exchange what will repay its upload, a few at a time.

    Args:
        budget: exchanges in one step over all layers, the most promising first.
        period: tokens between two steps.
        price: of an upload, in misses.
        parameters: of `dotscli.hot.exchange.Rule`.
    """

    def __init__(
        self,
        heat: Floats,
        n_slots: int,
        *,
        budget: int = 1 << 30,
        period: int = 1,
        price: float = 1.0,
        **parameters: float,
    ) -> None:
        super().__init__(heat, n_slots)
        self.rule = Rule(**parameters)  # type: ignore[arg-type]  # the limit is an int
        self.budget, self.period, self.price, self.now = budget, period, price, 0

    def prepare(self, trace: Ints) -> None:
        self.frequencies = Frequencies(self.heat, trace.shape[2], self.rule)

    def step(self, ids: Ints) -> Ints:
        used = np.zeros(self.heat.shape)
        used[self.rows, ids] = 1
        self.frequencies.observe(used)
        self.now += 1
        uploads = np.zeros(len(ids), np.int64)
        if self.now % self.period:
            return uploads
        score = self.frequencies.score()
        for swap in exchanges(score, self.resident, self.rule, self.budget, self.price):
            self.resident[swap.row, swap.out] = False
            self.resident[swap.row, swap.into] = True
            uploads[swap.row] += 1
        return uploads


class Belady(Policy):
    """The bound: keeps what is needed soonest, from the residents and what was just used.

    No policy that brings in only what a token uses has more hits, whatever it starts with.
    """

    next_use: Ints
    position: int = 0

    def prepare(self, trace: Ints) -> None:
        n_tokens, n_layers, _ = trace.shape
        soonest = np.full((n_layers, self.heat.shape[1]), NEVER, np.int64)
        self.next_use = np.empty(trace.shape, np.int64)
        for t in range(n_tokens - 1, -1, -1):
            self.next_use[t] = soonest[self.rows, trace[t]]
            soonest[self.rows, trace[t]] = t
        self.when = soonest
        self.resident = self.top(-soonest.astype(np.float64))
        self.position = 0

    def step(self, ids: Ints) -> Ints:
        candidates = self.resident.copy()
        candidates[self.rows, ids] = True
        self.when[self.rows, ids] = self.next_use[self.position]
        self.position += 1
        scores = np.where(candidates, -self.when, -2 * NEVER).astype(np.float64)
        # What is never needed again stays where it is: an upload of it would be for nothing.
        scores += np.where(self.resident, 0.5, 0.0)
        return self.become(self.top(scores))


def replay(trace: Ints, policy: Policy) -> Replay:
    """Run a trace through a policy."""
    n_tokens, n_layers, n_used = trace.shape
    misses = np.empty((n_tokens, n_layers), np.int64)
    uploads = np.empty((n_tokens, n_layers), np.int64)
    policy.prepare(trace)
    for t, ids in enumerate(trace):
        misses[t] = n_used - policy.resident[policy.rows, ids].sum(axis=1)
        uploads[t] = policy.step(ids)
    return Replay(misses, uploads, n_used)


def counts_of(trace: Ints, n_experts: int) -> Floats:
    """[layers, experts]: how often each expert was used."""
    n_layers = trace.shape[1]
    flat = trace.astype(np.int64) + n_experts * np.arange(n_layers)[None, :, None]
    found = np.bincount(flat.ravel(), minlength=n_layers * n_experts)
    return found.reshape(n_layers, n_experts).astype(np.float64)


@dataclass(frozen=True)
class Machine:
    """What the estimate of a token's time assumes; bandwidths in bytes per second.

    Attributes:
        ram: what the CPU reads experts with; pcie: uploads; device: what the GPU reads with.
        dense_s: everything that isn't a routed expert, on the device.
        layer_s: handing a layer's work to the device and waiting for it.
    """

    expert_nbytes: float = 9.28 * 2**20
    ram: float = 60e9
    pcie: float = 24e9
    device: float = 800e9
    dense_s: float = 0.010
    layer_s: float = 30e-6
    name: str = field(default="two-channel DDR5, PCIe 4.0 x16, a card of 24 GB")

    def token_s(self, found: Replay) -> float:
        """Mean seconds per token: both sides compute a layer at once, uploads share the RAM.

        Uploads run beside the computing; what they cost is the RAM bandwidth that they take from
        the misses, and they are never quicker than PCIe.
        """
        cpu = found.misses * (self.expert_nbytes / self.ram)
        hits = found.n_used - found.misses
        device = hits * (self.expert_nbytes / self.device) + self.layer_s * (hits > 0)
        uploaded = found.uploads.sum(axis=1) * self.expert_nbytes
        computing = self.dense_s + np.maximum(cpu, device).sum(axis=1) + uploaded / self.ram
        return float(np.maximum(computing, uploaded / self.pcie).mean())

    def waiting_s(self, found: Replay) -> float:
        """The same where a miss waits for its upload and is computed on the device."""
        device = found.n_used * (self.expert_nbytes / self.device) + self.layer_s
        uploaded = found.misses * (self.expert_nbytes / self.pcie)
        return float((self.dense_s + (uploaded + device).sum(axis=1)).mean())
