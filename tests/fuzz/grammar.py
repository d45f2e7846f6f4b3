"""GBNF grammars: checked, parsed by llama.cpp, and followed for a few tokens by a model."""

from __future__ import annotations

from random import Random

from dotscli.engine import Engine, EngineOptions
from dotscli.engine import grammar as grammar_module
from dotscli.engine.grammar import MAX_SECONDS
from dotscli.engine.sampling import Sampling
from tests import gguf_maker
from tests.fuzz.gguf import SIZES
from tests.fuzz.mutate import damaged, length, pick, text
from tests.fuzz.target import Target, in_full, refusals

N_PREDICT = 4
HURRIED_SECONDS = 0.5
VALID = (
    'root ::= "yes" | "no" | [0-9]{3}',
    r"""root ::= object
value ::= object | array | string | number
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}""",
    r"""root ::= (expr "=" term "\n")+
expr ::= term ([-+*/] term)*
term ::= num | "(" expr ")"
num ::= [0-9]+ # digits""",
)


def _rules(n: int, rule: str, last: str) -> str:
    """Rules r0 to r(n - 1), made of `rule` with N for the own number and M for the next."""
    made = (rule.replace("N", str(i)).replace("M", str(i + 1)) for i in range(n))
    return "\n".join(["root ::= r0", *made, f"r{n} ::= {last}"])


BOMBS = (
    lambda n: "root ::= " + '("a"*)* ' * n,
    lambda n: "root ::= " + '("a"?) ' * n,
    lambda n: 'root ::= ("a"? "b"?){' + str(n % 2001) + "}",
    lambda n: 'root ::= ("a"?){' + str(n % 2001) + '} ("b"?){' + str(n % 2001) + '} "c"',
    lambda n: 'root ::= (("a"{0,40}){0,40}){0,' + str(n % 41) + "}",
    lambda n: "root ::= " + "(" * (n % 64) + '"a"' + ")?" * (n % 64),
    lambda n: "root ::= " + " | ".join(['"a"'] * n),
    lambda n: (
        "root ::= " + " | ".join(f"r{i}" for i in range(n % 999)) + "\nr0 ::= r1?\nr1 ::= r0?"
    ),
    lambda n: _rules(n % 4000, "rN ::= rM rM", '"a"?'),
    lambda n: _rules(n % 4000, 'rN ::= rM | "a"', '"a"'),
    lambda n: _rules(n % 4000, "rN ::= rM*", '"a"'),
    lambda n: 'root ::= "' + "a" * n + '"',
    lambda n: "root ::= [" + "a-z" * n + "]+",
    lambda n: "root ::= a\na ::= b\nb ::= " + "a " * (n % 100),
    lambda n: "root ::= " + '("" | "")* ' * (n % 100),
)


class Grammar(Target):
    """A grammar for an answer of a tiny model."""

    def prepare(self) -> None:
        gguf_maker.dots1(**SIZES).write(self.valid / "m.gguf")

    def open(self) -> None:
        options = EngineOptions(n_threads=1, n_ctx=256)
        self.engine = Engine.load(self.valid / "m.gguf", options)

    def make(self, rng: Random) -> bytes:
        if rng.random() < 0.3:
            others = [grammar.encode() for grammar in VALID]
            return damaged(rng, rng.choice(others), others)
        if rng.random() < 0.2:
            return rng.choice(BOMBS)(length(rng, 1 << 14)).encode()
        names = ["root", *(f"r{i}" for i in range(rng.randrange(4)))]
        rules = [f"{name} ::= {expression(rng, names, 0)}" for name in names]
        return "\n".join(rules).encode("utf-8", "replace")

    def run(self, data: bytes) -> None:
        self.limit(data)
        with refusals():
            self.answer(data.decode("utf-8", "replace"))

    def limit(self, data: bytes) -> None:
        """How long the child may take from here on."""
        short = self.hurried and not in_full(data)
        grammar_module.MAX_SECONDS = HURRIED_SECONDS if short else MAX_SECONDS

    def answer(self, grammar: str) -> None:
        """A few tokens that follow it."""
        sampling = Sampling(temp=0.0, grammar=grammar)
        self.engine.forget()
        for piece in self.engine.generate([1, 2, 3], sampling, n_predict=N_PREDICT):
            piece.text.encode("utf-8")

    def close(self) -> None:
        self.engine.close()


def expression(rng: Random, names: list[str], depth: int) -> str:
    """The right side of a rule."""
    if depth > 4:
        return _atom(rng, names)
    inner = [expression(rng, names, depth + 1) for _ in range(rng.randrange(1, 4))]
    return pick(
        rng,
        [
            (3, lambda: " ".join(inner)),
            (2, lambda: " | ".join(inner)),
            (2, lambda: "(" + inner[0] + ")" + _repeat(rng)),
            (3, lambda: _atom(rng, names) + _repeat(rng)),
        ],
    )()


def _repeat(rng: Random) -> str:
    low, high = (rng.choice((0, 1, 2, 30, 999, 2000, 2001, 10**9)) for _ in range(2))
    return rng.choice(
        (
            "*",
            "+",
            "?",
            "",
            "",
            f"{{{low}}}",
            f"{{{low},}}",
            f"{{{low},{high}}}",
            "{,5}",
            "{",
            "{-1}",
        )
    )


def _atom(rng: Random, names: list[str]) -> str:
    odd = text(rng, 256).replace('"', "").replace("\\", "")
    return rng.choice(
        (rng.choice(names), '"a"', '"he"', "[a-z]", "[^a]", ".", '""', "[]", "[^]", '"\\x41"',
         "[\\]-a]", '"\\u00e9"', '"\\U0010ffff"', f'"{odd}"', f"[{odd[:20]}]", "<|system|>",
         "<[5]>", "nowhere")
    )  # fmt: skip


TARGET = Grammar
