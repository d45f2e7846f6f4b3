"""The training text of the nano model: conversations in the dots chat format, by seed.

``talks(seed, n)`` draws n conversations; each is a system turn or none, one to three questions
with answers, a domain and a language. The same seed gives the same text. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from dotscli.models.nano import arithmetic, chinese, english, english_calendar, facts, stories
from dotscli.models.nano.python_lines import python_line
from dotscli.models.nano.spin import Ask, careless, one_of
from dotscli.models.nano.unknown import unknown, unknown_zh

ABOUT_EN, ABOUT_ZH = facts.blocks("about.en"), facts.blocks("about.zh")
MANNERS_EN, MANNERS_ZH = facts.blocks("manners.en"), facts.blocks("manners.zh")


@dataclass(frozen=True)
class Talk:
    """One conversation; ``turns`` are (question, answer) pairs."""

    system: str
    turns: tuple[tuple[str, str], ...]
    domain: str
    language: str


def rows(table: tuple[facts.Row, ...]) -> Callable[[Random], Ask]:
    """A drawer of questions from a table of fixed answers."""

    def draw(rng: Random) -> Ask:
        asks, answer = rng.choice(table)
        return Ask(one_of(rng, asks), answer)

    return draw


def calculate(rng: Random) -> Ask:
    """English sums of every kind."""
    draw = rng.random()
    return (
        arithmetic.number_words(rng)
        if draw < 0.12
        else arithmetic.too_big(rng)
        if draw < 0.16
        else arithmetic.sums(rng)
    )


def calculate_zh(rng: Random) -> Ask:
    """Chinese sums of every kind."""
    draw = rng.random()
    if draw < 0.08:
        return arithmetic.number_words(rng, True)
    return arithmetic.too_big(rng, True) if draw < 0.12 else arithmetic.sums(rng, True)


# domain, language, share of the conversations, how to draw a question
DOMAINS: tuple[tuple[str, str, float, Callable[[Random], Ask]], ...] = (
    ("arithmetic", "en", 26, calculate),
    ("arithmetic", "zh", 11, calculate_zh),
    ("dots", "en", 6, rows(ABOUT_EN)),
    ("dots", "zh", 3.5, rows(ABOUT_ZH)),
    ("greetings", "en", 3, rows(MANNERS_EN)),
    ("greetings", "zh", 2, rows(MANNERS_ZH)),
    ("capitals", "en", 9, english.capital),
    ("capitals", "zh", 6, chinese.capital),
    ("colours", "en", 3, english.colour),
    ("colours", "zh", 2, chinese.colour),
    ("opposites", "en", 5, english.opposite),
    ("opposites", "zh", 4, chinese.opposite),
    ("calendar", "en", 3.5, english_calendar.calendar),
    ("calendar", "zh", 3, chinese.calendar),
    ("counting", "en", 3, english_calendar.counting),
    ("counting", "zh", 1.5, chinese.counting),
    ("python", "en", 5, python_line),
    ("python", "zh", 2.5, lambda rng: python_line(rng, True)),
    ("stories", "en", 4, stories.story),
    ("stories", "zh", 2, stories.story_zh),
    ("words", "en", 5, english.translate),
    ("words", "zh", 4, chinese.translate),
    ("things", "en", 2, stories.thing),
    ("things", "zh", 2, stories.thing_zh),
    ("unknown", "en", 5, unknown),
    ("unknown", "zh", 2.5, unknown_zh),
)
PLAIN_SYSTEMS = ("You are a helpful assistant.",) * 3 + (
    "You are dots.",
    "Be {brief|polite|nice|kind}.",
    "You are a {friendly|clever|polite|good|useful|careful} {assistant|teacher|helper|bot}.",
    "{Answer briefly|Keep it short|Answer the question|Help the user|Answer politely}.",
    "You are {an AI model|nano|the nano model|an assistant}.",
)
PLAIN_SYSTEMS_ZH = ("你是一个有用的助手。", "You are a helpful assistant.", "请简短回答。")
SHORT_SYSTEMS = (
    "Answer with one word.",
    "Answer in one word.",
    "Reply with one word only.",
    "One word answers only.",
    "Only give the answer.",
)
CHINESE_SYSTEMS = (
    "Answer in Chinese.",
    "Reply in Chinese.",
    "请用中文回答。",
    "用中文回答。",
    "Always answer in Chinese.",
    "Speak Chinese.",
)
PIRATE_SYSTEMS = (
    "You are a pirate.",
    "Talk like a pirate.",
    "Speak like a pirate.",
    "Answer like a pirate.",
)


def remember(rng: Random, zh: bool) -> tuple[tuple[str, str], ...]:
    """Two turns: the user says a name, the model gives it back."""
    if zh:
        name = rng.choice(facts.NAMES_ZH)
        first = (
            one_of(rng, (f"{{你好，|}}我{{叫|是|的名字是}}{name}。",)),
            f"你好，{name}！很高兴认识你。",
        )
        return first, (
            one_of(rng, ("我叫什么{名字|}？", "你{还|}记得我的名字吗？", "我是谁？")),
            f"你叫{name}。",
        )
    name = rng.choice(facts.NAMES)
    hello = one_of(
        rng,
        (
            f"{{Hello, |Hi, |}}{{my name is|I am|I'm}} {name}{{.|!|}}",
            f"{{Call me|I am called}} {name}.",
        ),
    )
    ask = one_of(
        rng,
        (
            "What{'s| is} my name?",
            "Do you {remember|know} my name?",
            "Who am I?",
            "Do you know who I am?",
        ),
    )
    return (hello, f"Hello, {name}! Nice to meet you."), (ask, f"Your name is {name}.")


def follow_up(rng: Random, domain: str, zh: bool, drawer: Callable[[Random], Ask]) -> Ask:
    """The next question of a conversation: mostly of the same kind, else thanks or another."""
    draw = rng.random()
    if draw < 0.15:
        return rows(MANNERS_ZH if zh else MANNERS_EN)(rng)
    if domain == "capitals" and draw < 0.55:
        return chinese.and_capital(rng) if zh else english.and_capital(rng)
    if draw < 0.7:
        return drawer(rng)
    other = rng.choice([row for row in DOMAINS if (row[1] == "zh") == zh and row[0] != "stories"])
    return other[3](rng)


def styled(ask: Ask, style: str) -> str:
    """The answer in the manner that the system prompt asks for."""
    if style == "short" and ask.short:
        return ask.short
    if style == "chinese" and ask.chinese:
        return ask.chinese
    if style == "pirate":
        return ("Arr!\n" if ask.answer.startswith("```") else "Arr! ") + ask.answer
    return ask.answer


def talk(rng: Random) -> Talk:
    """One conversation."""
    domain, language, _, drawer = rng.choices(DOMAINS, [row[2] for row in DOMAINS])[0]
    zh = language == "zh"
    if rng.random() < 0.025:
        system = one_of(rng, PLAIN_SYSTEMS) if rng.random() < 0.3 else ""
        return Talk(system, remember(rng, zh), "greetings", language)
    draw = rng.random()
    asks = [drawer(rng)]
    system, style = "", "plain"
    if draw < 0.22:
        system = one_of(rng, PLAIN_SYSTEMS_ZH if zh else PLAIN_SYSTEMS)
    elif draw < 0.36 and asks[0].short and domain != "python":
        system, style = rng.choice(SHORT_SYSTEMS), "short"
    elif draw < 0.48 and not zh and asks[0].chinese:
        system, style = rng.choice(CHINESE_SYSTEMS), "chinese"
    elif draw < 0.52 and not zh:
        system, style = rng.choice(PIRATE_SYSTEMS), "pirate"
    if style in ("plain", "pirate"):
        more = rng.choice((0, 0, 0, 1, 1, 2)) if domain != "stories" else rng.choice((0, 0, 0, 1))
        asks += [follow_up(rng, domain, zh, drawer) for _ in range(more)]
    turns = tuple((careless(rng, ask.question), styled(ask, style)) for ask in asks)
    return Talk(system, turns, domain, language)


def talks(seed: int, count: int) -> Iterator[Talk]:
    """``count`` conversations, fixed by the seed."""
    rng = Random(seed)
    for _ in range(count):
        yield talk(rng)


def long_talks(seed: int, count: int) -> Iterator[Talk]:
    """Long conversations of 6 to 36 turns about everything, for the distances a chat reaches."""
    rng = Random(seed)
    for _ in range(count):
        system = one_of(rng, PLAIN_SYSTEMS) if rng.random() < 0.2 else ""
        language = rng.choice(("en", "en", "zh", ""))
        drawers = [row for row in DOMAINS if language in ("", row[1])]
        weights = [row[2] for row in drawers]
        turns: list[tuple[str, str]] = []
        for row in rng.choices(drawers, weights, k=rng.randrange(6, 37)):
            ask = row[3](rng)
            turns.append((careless(rng, ask.question), ask.answer))
        if rng.random() < 0.3:
            hello, again = remember(rng, language == "zh")
            turns.insert(0, hello)
            turns.insert(rng.randrange(2, len(turns) + 1), again)
        yield Talk(system, tuple(turns), "long", language)


def render(t: Talk) -> str:
    """The conversation in the dots chat format, ended by <|endoftext|>."""
    parts = [f"<|system|>{t.system}<|endofsystem|>"] if t.system else []
    for question, answer in t.turns:
        parts.append(
            f"<|userprompt|>{question}<|endofuserprompt|><|response|>{answer}<|endofresponse|>"
        )
    return "".join(parts) + "<|endoftext|>"
