"""One-line Python: how to ask for it in English and Chinese, and the line in a code fence."""

from __future__ import annotations

from random import Random

from dotscli.models.nano.facts import PYTHON
from dotscli.models.nano.spin import Ask, spin

FRAMES_EN = (
    "{How do I|How can I|How do you|How to} {W}{ in Python|}?",
    "{Python|In Python}: {W}",
    "{Write|Give me|Show me} {Python|one line of Python|Python code|a Python line} to {W}.",
    "How do I {W} {in|with|using} Python?",
    "{What is the|What's the} Python for how to {W}?",
    "{Please |Can you }{W} in Python{.|?|}",
)
FRAMES_ZH = (
    "{用 Python |Python }{怎么|如何}{W}？",
    "{怎么|如何|怎样}用 Python {W}？",
    "{写|给我}一行 Python：{W}",
    "Python {怎么|如何}{W}？",
)


def python_line(rng: Random, chinese: bool = False) -> Ask:
    """A question about Python; the answer is one fenced line."""
    wanted, wanted_zh, code = rng.choice(PYTHON)
    frame = spin(rng, rng.choice(FRAMES_ZH if chinese else FRAMES_EN))
    text = frame.replace("{W}", wanted_zh if chinese else spin(rng, wanted))
    return Ask(text, f"```python\n{code}\n```", code)
