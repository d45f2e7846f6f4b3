"""Little stories, English and Chinese, and short sentences about things.

A story is drawn sentence by sentence from a few plots; the hero asked for is the hero told of.
"""

from __future__ import annotations

from random import Random

from dotscli.models.nano.facts import HEROES, THINGS, lines
from dotscli.models.nano.spin import Ask, capital_first, one_of, spin

PLOTS, PLOTS_ZH = lines("stories.en"), lines("stories.zh")  # the last line is the end
FINDS = (
    "a golden key",
    "a little bell",
    "a red balloon",
    "an old map",
    "a lost letter",
    "a silver ring",
    "a warm scarf",
    "a blue stone",
)
FRIENDS = (
    "a sad owl",
    "a small bee",
    "an old turtle",
    "a lost lamb",
    "a friendly crow",
    "a little snail",
)
FINDS_ZH = ("一把金钥匙", "一个小铃铛", "一个红气球", "一张旧地图", "一封信", "一块蓝石头")
FRIENDS_ZH = ("一只小蜜蜂", "一只老乌龟", "一只蜗牛", "一只乌鸦", "一只小羊")
PLACES_ZH = ("森林里", "山脚下", "河边", "小村子里", "海边", "大城市里")


def article(noun: str) -> str:
    """'a fox', 'an owl'."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def fill(text: str, hero: str, find: str, friend: str, short: str) -> str:
    """A plot with its people: {H} the hero, {F} the find, {A} the friend, {B} the friend again."""
    filled = text.replace("{H}", hero).replace("{F}", find)
    return filled.replace("{A}", friend).replace("{B}", short)


def tell(rng: Random, hero: tuple[str, ...]) -> str:
    """Five to seven English sentences."""
    name, trait, place, _ = hero
    find, friend = rng.choice(FINDS), rng.choice(FRIENDS)
    plot = PLOTS[rng.randrange(3)]
    start = f"Once upon a time there was {article(trait)} {name} who lived {place}."
    text = f"{start} {plot} {PLOTS[-1]}"
    return spin(rng, fill(text, name, find, friend, friend.split(" ", 1)[1]))


def tell_zh(rng: Random, hero: tuple[str, ...]) -> str:
    """Four or five Chinese sentences."""
    name, friend, find = hero[3], rng.choice(FRIENDS_ZH), rng.choice(FINDS_ZH)
    word = "颗" if name == "星星" else "个"
    start = f"从前，{rng.choice(PLACES_ZH)}住着一{word}{name}。"
    plot = PLOTS_ZH[0] if rng.random() < 0.5 else PLOTS_ZH[1]
    return spin(rng, fill(start + plot + PLOTS_ZH[-1], name, find, friend, friend[2:]))


def story(rng: Random) -> Ask:
    """Ask for a story, about somebody or about anybody."""
    hero = rng.choice(HEROES)
    if rng.random() < 0.25:
        ask = (
            "{Tell me|Write|Tell} {a|a short|a little} story.",
            "{A story|A story, please|Once upon a time}",
            "Can you tell {me |}a story?",
        )
    else:
        who = article(hero[0])
        ask = (
            "{Tell me|Write|Tell|Write me} a {|short |little }story about "
            f"{{{who}|{who}|{article(hero[1])} {hero[0]}}}.",
            f"{{A story|Story}} about {who}{{, please|}}.",
            f"Can you tell {{me |}}a story about {who}?",
            f"{{Make up|Invent}} a story about {who}.",
            f"I {{want|would like}} a story about {who}.",
        )
    return Ask(one_of(rng, ask), tell(rng, hero), "", tell_zh(rng, hero))


def story_zh(rng: Random) -> Ask:
    """The same in Chinese."""
    hero = rng.choice(HEROES)
    name = hero[3]
    if rng.random() < 0.25:
        ask: tuple[str, ...] = (
            "{给我|}讲{一个|个}故事{吧|}。",
            "你会讲故事吗？",
            "写一个{小|}故事。",
        )
    else:
        ask = (
            f"{{给我|}}讲一个{{关于|}}{name}的故事。",
            f"写一个关于{name}的{{小|}}故事。",
            f"讲个{name}的故事{{吧|}}。",
        )
    return Ask(one_of(rng, ask), tell_zh(rng, hero))


MASS = ("rain", "snow")
UNIQUE = ("moon", "sun")


def thing(rng: Random) -> Ask:
    """What is a cat?"""
    name, text, zh, zh_text = rng.choice(THINGS)
    full = name if name in MASS else f"the {name}" if name in UNIQUE else article(name)
    ask = one_of(
        rng,
        (
            f"{{What is|What's|Explain|Define}} {full}?",
            f"{{Can you explain|Tell me}} what {full} is{{?|.}}",
            f"What do you know about {full}?",
        ),
    )
    return Ask(ask, f"{capital_first(full)} is {text}.", "", f"{zh}是{zh_text}。")


def thing_zh(rng: Random) -> Ask:
    """猫是什么？"""
    _, _, zh, zh_text = rng.choice(THINGS)
    return Ask(
        one_of(rng, (f"{zh}是什么？", f"什么是{zh}？", f"{{解释|说说}}一下什么是{zh}。")),
        f"{zh}是{zh_text}。",
    )
