"""Chat templates: programs that come with a model. They may fail, but not run on or grow.

Random programs of everything that Jinja knows, with numbers and texts at which C code gets slow,
and damaged real ones.
"""

from __future__ import annotations

from random import Random

from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from dotscli.models import template_limits
from dotscli.models.template import DOTS1_TEMPLATE, segments
from dotscli.models.template_limits import MAX_SECONDS
from tests.fuzz.mutate import damaged, length, pick, text
from tests.fuzz.target import Target, WrongResult, in_full, refusals

MESSAGES = (
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": " hello <|endofuserprompt|> "},
    {"role": "assistant", "content": "world"},
    {"role": "user", "content": "and again"},
)
MAX_TEXT = 64 << 20
HURRIED_SECONDS = 0.5
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m['content']|trim + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}"
)
STRICT = (
    "{%- set ns = namespace(found=false, text='') -%}{%- for m in messages -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles') }}"
    "{%- endif -%}{%- set ns.text = ns.text ~ m.content[:100] -%}{%- endfor -%}{{ ns.text }}"
    "{{ strftime_now('%Y') }}{{ messages | tojson(indent=2) }}"
)
REAL = (DOTS1_TEMPLATE, CHATML, STRICT)
METHODS = (
    "upper", "lower", "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition",
    "rpartition", "find", "rfind", "index", "rindex", "count", "replace", "join", "startswith",
    "endswith", "title", "capitalize", "swapcase", "casefold", "removeprefix", "format", "center",
    "zfill", "ljust", "expandtabs", "encode", "translate", "items", "keys", "values", "get",
    "append", "extend", "pop", "update", "sort", "__class__", "__init__", "mro", "cycle",
)  # fmt: skip
# What opens, repeats, closes as often, and ends: a template that is hard to parse or to compile.
BOMBS = (
    ("", "{% if true %}", "{% endif %}", ""),
    ("", "{% if true %}a{% endif %}", "", ""),
    ("", "{% if m %}a{% elif x %}{{ x }}{% else %}b{% endif %}", "", ""),
    ("{% if 0 %}", "{% elif x == 1 %}a", "", "{% endif %}"),
    ("", "{% for a in messages %}", "{% endfor %}", ""),
    ("", "{% for a in messages %}{{ a }}{% endfor %}", "", ""),
    ("", "{% set x = 1 %}", "", ""),
    ("", "{% macro m() %}a{% endmacro %}", "", "{{ m() }}"),
    ("{{ ", "(", ")", " }}"),
    ("{{ ", "1+", "", "1 }}"),
    ("{{ ", "'a'~", "", "'b' }}"),
    ("{{ a", ".b", "", " }}"),
    ("{{ a", "[0]", "", " }}"),
    ("{{ 1", "|abs", "", " }}"),
    ("{{ [", "1,", "", "] }}"),
    ("{{ {", "'a':1,", "", "} }}"),
    ("{{ ", "[", "]", " }}"),
    ("{{ ", "not ", "", "1 }}"),
    ("{{ 1 ", "if x else 2 ", "", " }}"),
    ("{{ a(", "a(", ")", ") }}"),
    ("", "{{ x }}", "", ""),
    ("{# ", "a", "", ""),
    ("{{ '", "{", "", "' }}"),
    ("", "{", "", ""),
    ("{% set a = 'xxxxxxxxxx' %}", "{% set a = a ~ a %}", "", "{{ a|length }}"),
    ("{% set a = [1] %}", "{% set a = a + a %}", "", "{{ a|length }}"),
    ("{% set a = [1] %}", "{% set a = [a, a] %}", "", "{{ a }}"),
    ("{% set n = namespace(a=[]) %}", "{% set n.a = [n.a, n.a] %}", "", "{{ n.a }}"),
    ("{% set n = namespace() %}", "{% set n = namespace(a=n, b=n) %}", "", "{{ n.a }}"),
    ("{% set a = 3 %}", "{% set a = a * a %}", "", "{{ a }}"),
)
MAX_BOMB = 255 << 10  # characters
# Expressions that are cheap to write and may be dear to compute: $n a number, $s a text, $t one
# that is nearly found in it, $l a list.
DEAR = (
    "$n|round($n, 'ceil')", "$n|round($n, 'floor')", "1.5|round($n)", "$n ** $n", "$n * $n * $n",
    "'%*d' % ($n, 1)", "('%' ~ $n ~ 'd') % 1", "$s.find($t)", "$s.rfind($t)", "$s.count($t)",
    "$s.split($t)", "$s.rsplit($t)", "$s.partition($t)", "$s.rpartition($t)", "$s.index($t)",
    "$s.rindex($t)", "$s.strip($t)", "$s.lstrip($s)", "$s.rstrip($s)", "$s|trim($t)",
    "$s.replace('a', $s)", "$s|replace('', 'b')", "$s.join($l)", "$l|join($s)", "$s.splitlines()",
    "$s.split('a')", "$s|list", "$s|reverse", "$s|title", "$s.casefold()", "$s.isalnum()", "$s|int",
    "$s|float", "$s|tojson", "$l|tojson(indent=9)", "$s[::-1]", "$s[:-1]", "$t in $s", "$s == $t",
    "$s < $t", "$s * $n", "$l * $n", "$l|select('in', $l)|list", "$l|reject('in', $l)|list",
    "$l|map('string')|list", "$l|sort|unique|list", "$l|sort(attribute='a')", "$l|map('abs')|max",
    "$l.index(-1)", "$l.count(1)", "$l == $l", "-1 in $l", "$l|min", "$l + $l", "[$l, $l, $l]",
    "$l|selectattr('a')|list", "$l|dictsort", "range($n)|list", "range($n)[-1]", "range($n)|length",
    "-1 in range($n)", "range($n)|max", "{'a': $s, 'b': $s}", "$l|string", "$s|capitalize",
    "$s.removeprefix($t)", "$s ~ $s", "$s.endswith($t)", "namespace(a=$l, b=$l)", "$n|string",
    "$s|first", "$s|count", "$l|last", "$s.upper().lower()", "dict(a=$s)", "$s.swapcase()",
)  # fmt: skip


class Template(Target):
    """A template, rendered as a chat does it."""

    def make(self, rng: Random) -> bytes:
        if rng.random() < 0.3:
            return damaged(rng, rng.choice(REAL).encode(), [real.encode() for real in REAL])
        if rng.random() < 0.15:
            return _bomb(rng).encode()
        if rng.random() < 0.3:
            return _dear(rng).encode()
        made = _Program(rng)
        body = "".join(made.statement(0) for _ in range(rng.randrange(1, 5)))
        return body.encode("utf-8", "replace")

    def run(self, data: bytes) -> None:
        short = self.hurried and not in_full(data)
        template_limits.MAX_SECONDS = HURRIED_SECONDS if short else MAX_SECONDS
        with refusals():
            found = segments(data.decode("utf-8", "replace"), MESSAGES, eos_token="<|e|>")
            if found is not None and sum(len(segment.text) for segment in found) > MAX_TEXT:
                raise WrongResult("a template gives more text than it may")


def _bomb(rng: Random) -> str:
    start, unit, close, end = rng.choice(BOMBS)
    size = MAX_BOMB if rng.random() < 0.4 else length(rng, MAX_BOMB)
    n = max(1, (size - len(start) - len(end)) // (len(unit) + len(close)))
    return start + unit * n + close * n + end


def _dear(rng: Random) -> str:
    made = rng.choice(DEAR)
    for _ in range(made.count("$")):
        letters, n = (
            rng.choice(("a", "ab", " ", "é")),
            rng.choice((9, 999, 10**5, 10**6, 4 * 10**6)),
        )
        number = rng.choice((2, 64, 999, 10**5, 3 * 10**7, 2**31, 10**18, -(10**9)))
        made = made.replace("$n", str(number), 1)
        made = made.replace("$s", f"('{letters}' * {n})", 1)
        made = made.replace("$t", f"('{letters}' * {n // 2} ~ 'b')", 1)
        made = made.replace("$l", f"(range({min(n, 199_999)})|list)", 1)
    if rng.random() < 0.5:
        return "{{ " + made + " }}"
    n = rng.choice((3, 1000, 99_999))
    return "{% for i in range(" + str(n) + ") %}{% set y = " + made + " %}{% endfor %}"


class _Program:
    """A random program; `names` are variables that it has set."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.names = ["messages", "messages[0].content", "eos_token", "ns", "loop", "x", "m"]

    def statement(self, depth: int) -> str:
        rng = self.rng
        inner = "" if depth > 3 else self.statement(depth + 1)
        match rng.randrange(12):
            case 0 | 1 | 2:
                return "{{ " + self.expression(0) + " }}"
            case 3 | 4:
                name = rng.choice(("x", "y", "z", "a, b", "ns.x"))
                return "{% set " + name + " = " + self.expression(0) + " %}" + inner
            case 5:
                return "{% for x in " + self.expression(0) + " %}" + inner + "{% endfor %}"
            case 6:
                return "{% if " + self.expression(0) + " %}" + inner + "{% else %}b{% endif %}"
            case 7:
                return (
                    "{% macro m(x) %}" + inner + "{% endmacro %}{{ m(" + self.expression(2) + ") }}"
                )
            case 8:
                return "{% set x %}" + inner * rng.choice((1, 1, 100)) + "{% endset %}"
            case 9:
                return "{% filter " + rng.choice(list(FILTERS)) + " %}" + inner + "{% endfilter %}"
            case 10:
                return "{% set ns = namespace(x=" + self.expression(1) + ") %}" + inner
            case _:
                return rng.choice(
                    ("{% break %}", "{% generation %}" + inner + "{% endgeneration %}",
                     "{% include 'x' %}", "{% extends x %}", "{% call m(1) %}x{% endcall %}",
                     "{% import 'os' as o %}", "{% with x = 1 %}" + inner + "{% endwith %}",
                     "{% block b %}" + inner + "{% endblock %}", "{% raw %}{{{% endraw %}",
                     "{% autoescape true %}{{ x }}{% endautoescape %}", text(rng, 1 << 14))
                )  # fmt: skip

    def expression(self, depth: int) -> str:
        rng = self.rng
        if depth > 3:
            return self._atom()
        e = [self.expression(depth + 1) for _ in range(2)]
        return pick(
            rng,
            [
                (2, self._atom),
                (3, lambda: f"({e[0]})|{rng.choice(list(FILTERS))}{self._arguments(e[1])}"),
                (3, lambda: f"({e[0]}).{rng.choice(METHODS)}({e[1]})"),
                (
                    3,
                    lambda: (
                        f"({e[0]} {rng.choice(('+', '-', '*', '/', '//', '%', '**', '~'))} {e[1]})"
                    ),
                ),
                (
                    1,
                    lambda: (
                        f"({e[0]} {rng.choice(('==', '<', 'in', 'and', 'or', 'not in'))} {e[1]})"
                    ),
                ),
                (1, lambda: f"({e[0]}) is {rng.choice(list(TESTS))}"),
                (1, lambda: f"({e[0]})[{rng.choice((e[1], '::-1', ':3', '-1', '1:2:3'))}]"),
                (1, lambda: f"[{e[0]}, {e[1]}]"),
                (1, lambda: "{" + f"'a': {e[0]}, 'b': {e[1]}" + "}"),
                (1, lambda: f"({e[0]} if {e[1]} else x)"),
                (1, lambda: f"range({e[0]})"),
            ],
        )()

    def _arguments(self, inner: str) -> str:
        rng = self.rng
        given = [
            rng.choice(("", "x=", "attribute=", "width=", "indent=", "count=")) + v
            for v in (inner, self._atom())[: rng.randrange(3)]
        ]
        return f"({', '.join(given)})" if given else ""

    def _atom(self) -> str:
        rng = self.rng
        match rng.randrange(7):
            case 0 | 1:
                return rng.choice(self.names)
            case 2:
                return str(
                    rng.choice((0, 1, -1, 2, 7, 64, 1000, 100_000, 10**7, 2**31, 10**18, 2**63))
                )
            case 3:
                return rng.choice(
                    ("1.5", "1e308", "-0.0", "true", "none", "'ceil'", "'in'", "'a'", "''")
                )
            case 4:
                times = rng.choice((3, 1000, 10**6, 4 * 10**6))
                return f"('{rng.choice(('a', ' ', 'ab', 'é'))}' * {times})"
            case 5:
                return f"range({rng.choice((3, 1000, 10**5, 10**9))})|list"
            case _:
                return repr(text(rng, 256)).replace("{", "")


TARGET = Template
