"""A target that does what its input says: what the runner has to notice. It is none of TARGETS."""

from __future__ import annotations

import os
import time
from random import Random

from dotscli.errors import DotsError
from tests.fuzz.child import MAX_NBYTES
from tests.fuzz.target import Target, WrongResult

WORDS = (b"fine", b"refused", b"raises", b"wrong")


class Harmful(Target):
    """One of a few words."""

    n_made = 0

    def make(self, rng: Random) -> bytes:
        self.n_made += 1
        if self.n_made > 3 and "HARMFUL_MAKER" in os.environ:
            raise KeyError("maker")
        return rng.choice(WORDS) + b"!" * rng.randrange(3)

    def run(self, data: bytes) -> None:
        match data.rstrip(b"!"):
            case b"refused":
                raise DotsError("the input is refused")
            case b"wordless":
                raise DotsError("")
            case b"raises":
                raise KeyError("x")
            case b"leaves":
                raise SystemExit(0)
            case b"wrong":
                raise WrongResult("it is wrong: very")
            case b"dies":
                os.abort()
            case b"hangs":
                while True:
                    pass
            case b"eats":
                kept = b"x" * (MAX_NBYTES + (64 << 20))
                time.sleep(60)
                del kept


TARGET = Harmful
