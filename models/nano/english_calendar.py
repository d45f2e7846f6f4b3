"""English questions about days, months and how many there are, and counting."""

from __future__ import annotations

from random import Random

from dotscli.models.nano import facts
from dotscli.models.nano.spin import Ask, one_of


def calendar(rng: Random) -> Ask:
    """Days, months, and how many there are."""
    kind = rng.randrange(6)
    if kind == 0:
        i = rng.randrange(7)
        after = rng.random() < 0.6
        other = facts.DAYS[(i + (1 if after else -1)) % 7]
        word = "after" if after else "before"
        ask = one_of(
            rng,
            (
                f"{{What|Which}} day {{comes|is}} {word} {facts.DAYS[i]}?",
                f"{{What|Which day}} comes {word} {facts.DAYS[i]}?",
                f"{{The|Which is the}} day {word} {facts.DAYS[i]}?",
            ),
        )
        return Ask(ask, f"{other} comes {word} {facts.DAYS[i]}.", other)
    if kind == 1:
        i = rng.randrange(12)
        after = rng.random() < 0.6
        other = facts.MONTHS[(i + (1 if after else -1)) % 12]
        word = "after" if after else "before"
        ask = one_of(
            rng,
            (
                f"{{What|Which}} month {{comes|is}} {word} {facts.MONTHS[i]}?",
                f"{{What|Which month}} comes {word} {facts.MONTHS[i]}?",
            ),
        )
        return Ask(ask, f"{other} comes {word} {facts.MONTHS[i]}.", other)
    if kind == 2:
        i = rng.randrange(12)
        ask = one_of(
            rng,
            (
                f"How many days {{does|are in}} {facts.MONTHS[i]}{{ have|}}?",
                f"How many days has {facts.MONTHS[i]}?",
            ),
        )
        extra = ", and 29 in a leap year" if i == 1 else ""
        days = facts.MONTH_DAYS[i]
        return Ask(ask, f"{facts.MONTHS[i]} has {days} days{extra}.", str(days))
    if kind == 3:
        ask, answer, short = rng.choice(
            (
                ("How many days {are in|are there in|has|make} a week?", "A week has 7 days.", "7"),
                (
                    "How many months {are in|are there in|has|make} a year?",
                    "A year has 12 months.",
                    "12",
                ),
                ("How many hours {are in|are there in|has} a day?", "A day has 24 hours.", "24"),
                (
                    "How many minutes {are in|are there in|has} an hour?",
                    "An hour has 60 minutes.",
                    "60",
                ),
                (
                    "How many seconds {are in|are there in|has} a minute?",
                    "A minute has 60 seconds.",
                    "60",
                ),
                (
                    "How many days {are in|are there in|has} a year?",
                    "A year has 365 days, a leap year 366.",
                    "365",
                ),
                ("How many weeks {are in|are there in|has} a year?", "A year has 52 weeks.", "52"),
                ("How many legs {does a|has a} {spider|Spider} have?", "A spider has 8 legs.", "8"),
                (
                    "How many letters {are in|has} the {English |}alphabet?",
                    "The English alphabet has 26 letters.",
                    "26",
                ),
            )
        )
        return Ask(one_of(rng, (ask,)), answer, short)
    if kind == 4:
        ask, answer = rng.choice(
            (
                (
                    "{Name|List|What are|Tell me} the days of the week{.|}",
                    ", ".join(facts.DAYS) + ".",
                ),
                (
                    "{Name|List|What are|Tell me} the months of the year{.|}",
                    ", ".join(facts.MONTHS) + ".",
                ),
                (
                    "{Name|List|What are|Tell me} the {four |}seasons{.|}",
                    "Spring, summer, autumn and winter.",
                ),
            )
        )
        return Ask(one_of(rng, (ask,)), answer)
    i = rng.randrange(12)
    ask = one_of(rng, (f"{{What|Which}} is the {facts.ORDINALS[i]} month{{ of the year|}}?",))
    return Ask(ask, f"The {facts.ORDINALS[i]} month is {facts.MONTHS[i]}.", facts.MONTHS[i])


def counting(rng: Random) -> Ask:
    """Count up or down, next number, spell a number."""
    kind = rng.randrange(5)
    if kind < 2:
        a = rng.choice((1, 1, 1, rng.randrange(1, 60)))
        b = a + rng.randrange(2, 11)
        numbers = list(range(a, b + 1))
        if kind == 1 and rng.random() < 0.5:
            ask = one_of(rng, (f"Count {{down |backwards |}}from {b} to {a}.",))
            numbers.reverse()
        elif a == 1:
            ask = one_of(
                rng, (f"{{Count|Please count|Can you count}} {{to|from 1 to|up to}} {b}.",)
            )
        else:
            ask = f"Count from {a} to {b}."
        return Ask(ask, ", ".join(map(str, numbers)))
    if kind == 2:
        n = rng.randrange(0, 99)
        ask = one_of(
            rng, (f"{{What|Which number}} comes after {n}?", f"What is the next number after {n}?")
        )
        return Ask(ask, f"{n + 1} comes after {n}.", str(n + 1))
    if kind == 3:
        n = rng.randrange(1, 100)
        ask = one_of(rng, (f"{{What|Which number}} comes before {n}?",))
        return Ask(ask, f"{n - 1} comes before {n}.", str(n - 1))
    n = rng.randrange(21)
    if rng.random() < 0.5:
        ask = one_of(
            rng,
            (f"{{Write|Spell}} {n} {{in words|as a word}}.", f"How do you {{spell|write}} {n}?"),
        )
        return Ask(ask, f'{n} is written "{facts.NUMBERS[n]}".', facts.NUMBERS[n])
    n = rng.randrange(0, 100)
    even = "even" if n % 2 == 0 else "odd"
    ask = one_of(
        rng,
        (
            f"Is {n} {{even or odd|odd or even}}?",
            f"Is {n} {{even|an even number|odd|an odd number}}?",
        ),
    )
    return Ask(ask, f"{n} is {even}.", even.capitalize())
