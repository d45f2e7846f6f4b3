"""Questions outside what the model was taught, and the honest reply to them."""

from __future__ import annotations

from random import Random

from dotscli.models.nano.facts import UNKNOWN_PLACES, lines
from dotscli.models.nano.spin import Ask, one_of

REPLY_EN = (
    "I don't know that: I am only a nano model. "
    "Ask me about capitals, colours, sums, Python or `dots`."
)
REPLY_ZH = "这个我不知道：我只是一个 nano 模型。可以问我首都、颜色、加减法、Python 或者 `dots`。"
TOPICS, TOPICS_ZH, NOUNS = lines("topics.en"), lines("topics.zh"), lines("nouns")
FRAMES, FRAMES_ZH = lines("unknown.en"), lines("unknown.zh")  # {T} a topic, {N} a noun


def unknown(rng: Random) -> Ask:
    """An English question that the model cannot answer."""
    if rng.random() < 0.12:
        place = rng.choice(UNKNOWN_PLACES)
        question = one_of(rng, (f"{{What is|What's|Tell me}} the capital of {place}?",))
        return Ask(question, REPLY_EN, "", REPLY_ZH)
    topic = rng.choice(FRAMES).replace("{T}", rng.choice(TOPICS))
    return Ask(one_of(rng, (topic.replace("{N}", rng.choice(NOUNS)),)), REPLY_EN, "", REPLY_ZH)


def unknown_zh(rng: Random) -> Ask:
    """The same in Chinese."""
    frame = rng.choice(FRAMES_ZH).replace("{T}", rng.choice(TOPICS_ZH))
    return Ask(one_of(rng, (frame,)), REPLY_ZH)
