"""The tables that the training text is made of, read from the files in tables/.

``.tsv`` files are rows of columns, ``.txt`` files one text a line; ``about`` and ``manners`` are
blocks of questions that end in a line ``= answer``. Braces hold alternatives (spin.py). Knows
nothing of how a question is asked.
"""

from __future__ import annotations

from pathlib import Path

TABLES = Path(__file__).parent / "tables"

Row = tuple[tuple[str, ...], str]


def table(name: str) -> tuple[tuple[str, ...], ...]:
    """The rows of a tab-separated file."""
    text = (TABLES / f"{name}.tsv").read_text(encoding="utf-8")
    return tuple(tuple(line.split("\t")) for line in text.splitlines())


def words(text: str) -> tuple[str, ...]:
    """A tuple of the words of a text."""
    return tuple(text.split())


def lines(name: str) -> tuple[str, ...]:
    """The lines of a text file."""
    return tuple((TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def blocks(name: str) -> tuple[Row, ...]:
    """Pairs of (ways to ask, answer)."""
    text = (TABLES / f"{name}.txt").read_text(encoding="utf-8")
    pairs = []
    for block in text.strip().split("\n\n"):
        *asks, answer = block.split("\n")
        if not asks or not answer.startswith("= "):
            raise ValueError(f"{name}.txt: a block must end in a line '= answer', not {answer!r}")
        pairs.append((tuple(asks), answer[2:]))
    return tuple(pairs)


CAPITALS = table("capitals")  # country, capital, country in Chinese, capital in Chinese
COLOURS = table("colours")  # thing, colour, thing in Chinese, colour in Chinese
MIXES = table("mixes")  # colour, colour, mixture; the same in Chinese
OPPOSITES = table("opposites")  # word, opposite; the same in Chinese
WORDS = table("words")  # English, Chinese
PYTHON = table("python")  # what is wanted, the same in Chinese, the line
HEROES = table("heroes")  # hero, trait, home, hero in Chinese
THINGS = table("things")  # thing, what it is; the same in Chinese
NAMES, NAMES_ZH = lines("names.en"), lines("names.zh")
UNKNOWN_PLACES = lines("unknown_places")  # capitals that the model shall say it does not know

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAYS_ZH = ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日")
MONTHS = words(
    "January February March April May June July August September October November December"
)
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
DIGITS_ZH = words("零 一 二 三 四 五 六 七 八 九 十 十一 十二")
ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
)
NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
)
