"""English questions and answers from the tables: capitals, colours, opposites, words."""

from __future__ import annotations

from random import Random

from dotscli.models.nano import facts
from dotscli.models.nano.spin import Ask, capital_first, one_of


def capital(rng: Random) -> Ask:
    """Country to capital, and back."""
    country, city, country_zh, city_zh = rng.choice(facts.CAPITALS)
    if rng.random() < 0.2 and country not in ("England", "Scotland"):
        ask = one_of(
            rng,
            (
                f"{city} is the capital of {{which|what}} country?",
                f"{{Which|What}} country has {city} as its capital?",
                f"Of which country is {city} the capital?",
            ),
        )
        return Ask(
            ask, f"{city} is the capital of {country}.", country, f"{city_zh}是{country_zh}的首都。"
        )
    ask = one_of(
        rng,
        (
            f"{{What is|What's|Name|Tell me|Which city is|Do you know}} the capital of {country}?",
            f"{{What is|What's}} the capital {{city of|of}} {country}?",
            f"{{Capital of|The capital of}} {country}?",
            f"Which city is the capital of {country}?",
            f"{country}: what is {{its|the}} capital{{ city|}}?",
            f"What is {country}'s capital{{ city|}}?",
        ),
    )
    return Ask(
        ask, f"The capital of {country} is {city}.", city, f"{country_zh}的首都是{city_zh}。"
    )


def and_capital(rng: Random) -> Ask:
    """The short follow-up question after one about a capital."""
    country, city, _, _ = rng.choice(facts.CAPITALS)
    ask = one_of(
        rng, (f"And {{of |}}{country}?", f"And the capital of {country}?", f"What about {country}?")
    )
    return Ask(ask, f"The capital of {country} is {city}.", city)


def colour(rng: Random) -> Ask:
    """Colour of a thing, mixtures, lists."""
    draw = rng.random()
    word = rng.choice(("colour", "color"))
    if draw < 0.12:
        a, b, mix, a_zh, b_zh, mix_zh = rng.choice(facts.MIXES)
        if rng.random() < 0.5:
            a, b, a_zh, b_zh = b, a, b_zh, a_zh
        ask = one_of(
            rng,
            (
                f"What {{{word} do you get|do you get}} {{if|when}} you mix {a} and {b}?",
                f"{{Mix|What is}} {a} and {b}{{ mixed|}}?",
                f"What {word} do {a} and {b} make?",
            ),
        )
        answer = f"{capital_first(a)} and {b} make {mix}."
        return Ask(ask, answer, capital_first(mix), f"{a_zh}和{b_zh}混合是{mix_zh}。")
    if draw < 0.18:
        ask = one_of(rng, (f"{{Name|Tell me|List|Give me}} {{three|some|a few}} {word}s.",))
        return Ask(
            ask, "Three colours are red, green and blue.", "", "三种颜色：红色、绿色和蓝色。"
        )
    if draw < 0.24:
        ask = one_of(
            rng,
            (
                f"{{What are the {word}s of|Which {word}s {{are in|has}}|Name the {word}s of}} "
                "the rainbow?",
            ),
        )
        return Ask(ask, "The rainbow is red, orange, yellow, green, blue, indigo and violet.")
    thing, shade, thing_zh, shade_zh = rng.choice(facts.COLOURS)
    bare = thing.split(" ", 1)[1] if " " in thing else thing
    ask = one_of(
        rng,
        (
            f"{{What|Which}} {word} is {thing}?",
            f"{{What is|What's}} the {word} of {thing}?",
            f"{{What is|Tell me}} the {word} of {{{thing}|{bare}}}?",
            f"{{The |}}{word} of {thing}?",
        ),
    )
    return Ask(
        ask,
        f"{capital_first(thing)} is {shade}.",
        capital_first(shade),
        f"{thing_zh}是{shade_zh}的。",
    )


def opposite(rng: Random) -> Ask:
    """Opposites, both ways round where only one answer is possible."""
    a, b, _, _ = rng.choice(facts.OPPOSITES)
    firsts = [row[0] for row in facts.OPPOSITES]
    seconds = [row[1] for row in facts.OPPOSITES]
    if rng.random() < 0.35 and b not in firsts and seconds.count(b) == 1:
        a, b = b, a
    ask = one_of(
        rng,
        (
            f"{{What is|What's|Tell me|Name|Give me}} the opposite of {{{a}|{a}|'{a}'|\"{a}\"}}?",
            f"{{Opposite|The opposite}} of {a}?",
            f"Which word {{means|is}} the opposite of {a}?",
            f"What is the {{antonym|contrary}} of {a}?",
        ),
    )
    return Ask(ask, f"The opposite of {a} is {b}.", capital_first(b))


def translate(rng: Random) -> Ask:
    """One word, English to Chinese or back."""
    english, chinese = rng.choice(facts.WORDS)
    if rng.random() < 0.5:
        ask = one_of(
            rng,
            (
                "{What is|What's|How do you say|How do I say|Say} "
                f"{{{english}|{english}|'{english}'|\"{english}\"}} in Chinese?",
                f"Translate {{{english}|'{english}'|\"{english}\"}} {{to|into}} Chinese.",
                "{What is the Chinese word|The Chinese word|Chinese} for "
                f"{{{english}|'{english}'}}?",
            ),
        )
        answer = f'"{english}" in Chinese is {chinese}.'
        return Ask(ask, capital_first(answer), chinese, f"“{english}”的中文是“{chinese}”。")
    ask = one_of(
        rng,
        (
            f"{{What does|What is the meaning of}} {chinese}{{ mean| mean in English|}}?",
            f"Translate {chinese} {{to|into}} English.",
            f"{{What is|What's}} {chinese} in English?",
        ),
    )
    return Ask(ask, f'{chinese} means "{english}".', english)
