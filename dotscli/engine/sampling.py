"""How the next token is chosen: the settings, their ranges and the order of the steps.

Pure values. `Sampling.steps()` names the steps in the order of llama.cpp's default chain
(penalties, top-k, top-p, min-p, temperature, draw); the engine builds them in C once per
generation. This module knows neither llama.cpp nor a model.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

from dotscli.errors import DotsError

MAX_SEED = 2**32 - 2  # llama.cpp reads 2**32 - 1 as "draw one", which nobody could repeat
MAX_COUNT = 2**31 - 1
MIN_TEMP = 1e-4  # logits divided by less may leave float32; what it takes is the likeliest anyway
MAX_LAST_N = 1 << 20  # tokens, the longest context; llama.cpp reserves memory for so many

# Least and most of every setting; the flags are spelled like them.
RANGES: dict[str, tuple[float, float]] = {
    "temp": (-100.0, 100.0),
    "top_k": (0, MAX_COUNT),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "repeat_last_n": (0, MAX_LAST_N),
    "seed": (-1, MAX_SEED),
}


@dataclass(frozen=True)
class Sampling:
    """Settings as llama.cpp spells them, with its defaults.

    `temp` below 1e-4 takes the most likely token; `top_k` 0, `top_p` 1 and `min_p` 0 turn these
    steps off. `repeat_last_n` is how many of the last tokens, prompt included, the penalties look
    at. `seed` -1 stands for one that `with_seed` draws. `grammar` is GBNF the answer must follow.

    Raises:
        DotsError: a value outside its range, named by the flag that sets it.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int = -1
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name in RANGES:
            value = getattr(self, name)
            if not in_range(name, value):
                raise DotsError(
                    f"--{name.replace('_', '-')} {shown(value)} is out of range",
                    hint=f"give a number {range_text(name)}",
                    exit_status=2,
                )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, so that the seed does not matter."""
        return self.temp < MIN_TEMP

    @property
    def penalizes(self) -> bool:
        """Whether tokens seen before are judged differently."""
        return self.repeat_last_n > 0 and (
            self.repeat_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def repeatable(self) -> bool:
        """Whether somebody expects the same answer from the same call, before a seed is drawn."""
        return self.temp == 0 or self.seed >= 0

    def with_seed(self) -> Sampling:
        """The same settings with the seed drawn if it is -1: the one to report and to repeat."""
        if self.seed >= 0:
            return self
        return dataclasses.replace(self, seed=random.SystemRandom().randint(0, MAX_SEED))

    def steps(self) -> tuple[tuple[str | float, ...], ...]:
        """Name and arguments of every step that does something, in llama.cpp's order.

        The penalties' arguments are (last_n, repeat, frequency, presence), those of "dist" the
        seed, which must have been drawn. A step at its neutral value is left out: at a vocabulary
        of 152,064 an idle penalty step alone would cost more than the draw.
        """
        steps: list[tuple[str | float, ...]] = []
        if self.penalizes:
            steps.append(
                (
                    "penalties",
                    self.repeat_last_n,
                    self.repeat_penalty,
                    self.frequency_penalty,
                    self.presence_penalty,
                )
            )
        if self.greedy:
            return (*steps, ("greedy",))
        if self.top_k > 0:
            steps.append(("top_k", self.top_k))
        if self.top_p < 1.0:
            steps.append(("top_p", self.top_p))
        if self.min_p > 0.0:
            steps.append(("min_p", self.min_p))
        return (*steps, ("temp", self.temp), ("dist", self.with_seed().seed))


def in_range(name: str, value: float) -> bool:
    """Whether a setting may have this value; NaN never."""
    low, high = RANGES[name]
    return bool(low <= value <= high)


def range_text(name: str) -> str:
    """`between 0 and 1`."""
    low, high = RANGES[name]
    return f"between {low:.10g} and {high:.10g}"


def shown(value: float) -> str:
    """A number as an error shows it, without the hundreds of digits that it may have."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "more than 1e20" if value > 0 else "less than -1e20"
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_n_predict(value: int) -> None:
    """Refuses what can't be meant by -n: -1 is no limit, 0 reads the prompt and answers nothing.

    Raises:
        DotsError: exit status 2.
    """
    if not -1 <= value <= MAX_COUNT:
        raise DotsError(
            f"--n-predict {shown(value)} is out of range",
            hint=f"give a number of tokens up to {MAX_COUNT}, or -1 for no limit",
            exit_status=2,
        )
