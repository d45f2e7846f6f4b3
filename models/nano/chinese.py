"""Chinese questions and answers from the tables."""

from __future__ import annotations

from random import Random

from dotscli.models.nano import facts
from dotscli.models.nano.spin import Ask, one_of


def capital(rng: Random) -> Ask:
    """首都."""
    _, _, country, city = rng.choice(facts.CAPITALS)
    if rng.random() < 0.22 and country not in ("英格兰", "苏格兰"):
        ask = one_of(rng, (f"{city}是{{哪个国家|哪国}}的首都？",))
        return Ask(ask, f"{city}是{country}的首都。", country)
    ask = one_of(
        rng,
        (
            f"{country}的首都是{{哪里|什么|哪儿|哪个城市|哪座城市}}？",
            f"{{告诉我|请告诉我}}{country}的首都。",
            f"{country}的首都{{呢|叫什么|在哪里}}？",
            f"{country}首都是{{哪里|什么}}？",
            f"哪个城市是{country}的首都？",
        ),
    )
    return Ask(ask, f"{country}的首都是{city}。", city)


def and_capital(rng: Random) -> Ask:
    """追问."""
    _, _, country, city = rng.choice(facts.CAPITALS)
    return Ask(
        one_of(rng, (f"{{那|}}{country}呢？", f"{country}的呢？")),
        f"{country}的首都是{city}。",
        city,
    )


def colour(rng: Random) -> Ask:
    """颜色."""
    draw = rng.random()
    if draw < 0.15:
        _, _, _, a, b, mix = rng.choice(facts.MIXES)
        ask = one_of(
            rng,
            (
                f"{a}和{b}混合{{是什么颜色|得到什么颜色|变成什么颜色}}？",
                f"{a}加{b}{{是|等于}}什么颜色？",
            ),
        )
        return Ask(ask, f"{a}和{b}混合是{mix}。", mix)
    if draw < 0.22:
        return Ask(one_of(rng, ("{说出|告诉我|列出}三种颜色。",)), "三种颜色：红色、绿色和蓝色。")
    _, _, thing, shade = rng.choice(facts.COLOURS)
    ask = one_of(
        rng, (f"{thing}是什么颜色{{的|}}？", f"{thing}的颜色是什么？", f"{thing}什么颜色？")
    )
    return Ask(ask, f"{thing}是{shade}的。", shade)


def opposite(rng: Random) -> Ask:
    """反义词."""
    _, _, a, b = rng.choice(facts.OPPOSITES)
    firsts = [row[2] for row in facts.OPPOSITES]
    if rng.random() < 0.35 and b not in firsts:
        a, b = b, a
    ask = one_of(
        rng,
        (
            f"{{“{a}”|“{a}”|{a}}}的反义词是{{什么|哪个}}？",
            f"{{告诉我|请说出}}“{a}”的反义词。",
            f"{a}的{{反义词|相反|反面}}是什么？",
            f"“{a}”的反义词{{呢|}}？",
        ),
    )
    return Ask(ask, f"“{a}”的反义词是“{b}”。", b)


def translate(rng: Random) -> Ask:
    """单词."""
    english, chinese = rng.choice(facts.WORDS)
    if rng.random() < 0.55:
        ask = one_of(
            rng,
            (
                f"{{“{chinese}”|{chinese}}}用英{{语|文}}怎么说？",
                f"{{“{chinese}”|{chinese}}}的英{{语|文}}是什么？",
                f"把“{chinese}”翻译成英{{语|文}}。",
                f"{chinese}英{{语|文}}怎么说？",
            ),
        )
        return Ask(ask, f"“{chinese}”的英文是 {english}。", english)
    ask = one_of(
        rng,
        (
            f"{english} 是什么意思？",
            f"{english} 用中文怎么说？",
            f"{english} 的中文是什么？",
            f"把 {english} 翻译成中文。",
        ),
    )
    return Ask(ask, f"“{english}”的中文是“{chinese}”。", chinese)


def calendar(rng: Random) -> Ask:
    """星期和月份."""
    kind = rng.randrange(4)
    if kind == 0:
        i = rng.randrange(7)
        after = rng.random() < 0.6
        other = facts.DAYS_ZH[(i + (1 if after else -1)) % 7]
        side = "后" if after else "前"
        ask = one_of(
            rng,
            (
                f"{facts.DAYS_ZH[i]}的{side}一天是{{星期几|哪天}}？",
                f"{facts.DAYS_ZH[i]}{side}面是星期几？",
            ),
        )
        return Ask(ask, f"{facts.DAYS_ZH[i]}的{side}一天是{other}。", other)
    if kind == 1:
        i = rng.randrange(12)
        days = facts.MONTH_DAYS[i]
        name = f"{facts.DIGITS_ZH[i + 1]}月" if rng.random() < 0.5 else f"{i + 1}月"
        extra = "，闰年有 29 天" if i == 1 else ""
        return Ask(
            f"{name}有{rng.choice(('多少', '几'))}天？", f"{name}有 {days} 天{extra}。", str(days)
        )
    if kind == 2:
        ask, answer, short = rng.choice(
            (
                ("一{周|个星期}有{几|多少}天？", "一周有 7 天。", "7"),
                ("一年有{几|多少}个月？", "一年有 12 个月。", "12"),
                ("一天有{几|多少}个小时？", "一天有 24 个小时。", "24"),
                ("一{小时|个小时}有{几|多少}分钟？", "一小时有 60 分钟。", "60"),
                ("一分钟有{几|多少}秒？", "一分钟有 60 秒。", "60"),
                ("一年有{几|多少}天？", "一年有 365 天，闰年有 366 天。", "365"),
                ("一年有{几|多少}个季节？", "一年有 4 个季节。", "4"),
            )
        )
        return Ask(one_of(rng, (ask,)), answer, short)
    ask, answer = rng.choice(
        (
            ("{一周有哪几天|一个星期有哪些天|说出一周的七天}？", "、".join(facts.DAYS_ZH) + "。"),
            ("{四季是什么|一年有哪四季|四个季节是什么}？", "春天、夏天、秋天和冬天。"),
        )
    )
    return Ask(one_of(rng, (ask,)), answer)


def counting(rng: Random) -> Ask:
    """数数."""
    kind = rng.randrange(4)
    if kind < 2:
        a = rng.choice((1, 1, rng.randrange(1, 60)))
        b = a + rng.randrange(2, 11)
        numbers = list(range(a, b + 1))
        if kind == 1 and rng.random() < 0.4:
            numbers.reverse()
            return Ask(f"从 {b} 倒数到 {a}。", "，".join(map(str, numbers)))
        ask = one_of(rng, (f"从 {a} 数到 {b}。", f"请从 {a} 数到 {b}。", f"数数：{a} 到 {b}"))
        return Ask(ask, "，".join(map(str, numbers)))
    n = rng.randrange(1, 99)
    if kind == 2:
        return Ask(
            f"{n} 后面是{rng.choice(('几', '多少', '什么数'))}？",
            f"{n} 后面是 {n + 1}。",
            str(n + 1),
        )
    even = "偶数" if n % 2 == 0 else "奇数"
    return Ask(f"{n} 是奇数还是偶数？", f"{n} 是{even}。", even)
