"""Sums for the nano model: two-digit addition and subtraction, and the small tables.

About one sum in twenty never appears in the training text (``held_out``): what the model makes of
those shows whether it calculates or remembers.
"""

from __future__ import annotations

from random import Random

from dotscli.models.nano.facts import NUMBERS
from dotscli.models.nano.spin import Ask, one_of

HELD_OUT_OF = 20
SIGNS = {"+": ("+", "plus", "加"), "-": ("-", "minus", "减"), "*": ("×", "times", "乘以")}

ASK_EN = (
    "{What is|What's|Calculate|Compute|How much is|Work out|Tell me|Solve} {A} {S} {B}?",
    "{A} {S} {B}{?|| =| = ?|=}",
    "{What is|What's|How much is|Calculate} {A} {W} {B}?",
    "{A} {W} {B}?",
    "What {is the result of|do you get for|does} {A} {S} {B}{?| give?| make?}",
    "{Can you|Could you|Please} {add up|calculate|compute|do} {A} {S} {B}?",
)
ASK_ZH = (
    "{A} {Z} {B} {等于|是}多少？",
    "{A}{Z}{B}{等于|是}多少？",
    "{A} {S} {B} {等于多少|是多少|等于几}？",
    "{计算|算一下|请计算|请算一下}{|：} {A} {S} {B}",
    "{A}{S}{B}{等于多少？|=？|=|是多少？}",
)


def held_out(a: int, sign: str, b: int) -> bool:
    """Whether this sum is kept out of the training text."""
    return (a * 7919 + b * 104729 + ord(sign) * 31) % 997 % HELD_OUT_OF == 3


def result(a: int, sign: str, b: int) -> int:
    """The value of ``a sign b`` for + - and *."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def draw(rng: Random) -> tuple[int, str, int]:
    """A sum in range, weighted towards those that need carrying; never a held-out one."""
    while True:
        kind = rng.random()
        if kind < 0.46:
            a, sign, b = rng.randrange(100), "+", rng.randrange(100)
        elif kind < 0.8:
            a, sign, b = rng.randrange(100), "-", rng.randrange(100)
            if a < b and rng.random() < 0.85:
                a, b = b, a
        else:
            a, sign, b = rng.randrange(13), "*", rng.randrange(13)
        if rng.random() < 0.1:
            b = rng.randrange(11)
        if sign == "*" or not held_out(a, sign, b):
            return a, sign, b


def question(rng: Random, a: int, sign: str, b: int, chinese: bool) -> str:
    """One of the ways to ask for a sum."""
    signs = SIGNS[sign]
    symbol = rng.choice("*×x") if sign == "*" else sign
    text = one_of(rng, ASK_ZH if chinese else ASK_EN)
    return (
        text.replace("{A}", str(a))
        .replace("{B}", str(b))
        .replace("{S}", symbol)
        .replace("{W}", signs[1])
        .replace("{Z}", signs[2])
    )


def answer(a: int, sign: str, b: int) -> str:
    """The sum written out, which is what the model replies."""
    return f"{a} {SIGNS[sign][0]} {b} = {result(a, sign, b)}"


def sums(rng: Random, chinese: bool = False) -> Ask:
    """A question with two numbers."""
    a, sign, b = draw(rng)
    short = str(result(a, sign, b))
    return Ask(question(rng, a, sign, b, chinese), answer(a, sign, b), short, answer(a, sign, b))


def too_big(rng: Random, chinese: bool = False) -> Ask:
    """Numbers beyond what was learnt: the model says so."""
    a, b = rng.randrange(100, 10000), rng.randrange(100, 10000)
    if rng.random() < 0.4:
        a, b = rng.choice(((a, rng.randrange(100)), (rng.randrange(100), b)))
    zh = "我只学过一百以内的加减法，这个算不了。"
    if chinese:
        return Ask(question(rng, a, rng.choice("+-"), b, True), zh)
    en = "I only learnt sums of numbers below 100, so I can't do that one."
    return Ask(question(rng, a, rng.choice("+-"), b, False), en, "", zh)


def number_words(rng: Random, chinese: bool = False) -> Ask:
    """Small sums in words, doubles and halves, bigger and smaller."""
    a, b = rng.randrange(11), rng.randrange(10)
    kind = rng.randrange(4)
    if chinese:
        if kind < 2:
            a, b = rng.randrange(100), rng.randrange(100)
            b = b + 1 if a == b and b < 99 else b
            big = kind == 0
            found = max(a, b) if big else min(a, b)
            word = "大" if big else "小"
            return Ask(f"{a} 和 {b} 哪个{word}？", f"{found} 更{word}。", str(found))
        n = rng.randrange(1, 50)
        return Ask(f"{n} 的两倍是多少？", f"{n} 的两倍是 {2 * n}。", str(2 * n))
    if kind == 0:
        total = NUMBERS[a + b]
        text = f"{NUMBERS[a]} plus {NUMBERS[b]}"
        return Ask(one_of(rng, ("What is " + text + "?", text + "?")), f"{text} is {total}.", total)
    if kind == 1:
        n = rng.randrange(1, 50)
        ask = one_of(
            rng,
            (f"What is {{twice|double|two times}} {n}?", f"Double {n}.", f"{{Twice|Double}} {n}?"),
        )
        return Ask(ask, f"Twice {n} is {2 * n}.", str(2 * n))
    if kind == 2:
        n = rng.randrange(1, 50)
        return Ask(
            one_of(rng, (f"What is half of {2 * n}?", f"Half of {2 * n}?")),
            f"Half of {2 * n} is {n}.",
            str(n),
        )
    a, b = rng.randrange(100), rng.randrange(100)
    b = b + 1 if a == b and b < 99 else b
    a = a - 1 if a == b else a
    word = rng.choice(("bigger", "smaller"))
    found = max(a, b) if word == "bigger" else min(a, b)
    ask = one_of(rng, (f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?"))
    return Ask(ask, f"{found} is {word}.", str(found))
