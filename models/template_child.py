"""The process that chat templates of unknown origin render in: `dotscli.models.child` starts it."""

from __future__ import annotations

import time
import unicodedata  # for \N{...} in a literal
from contextlib import suppress
from typing import Any

from dotscli.errors import DotsError
from dotscli.models.child_loop import serve
from dotscli.models.sandbox import run

MAX_NBYTES = 512 * 1024**2
# Python and jinja2 load some modules when they first need them; later this process opens no file.
FIRST = (
    r"{% macro f(x) %}{{ x }}{% endmacro %}{% set n = namespace(a='\u00e9\n') %}"
    r"{% for a, b in {'x': 1.5}.items() %}{{ f(a ~ b) | trim }}{{ loop.index }}{% endfor %}"
    r"{{ '%s' % n.a.upper() }}{{ [n.a] | tojson(indent=2) }}{{ strftime_now('%d %b %Y %Z') }}",
    "{% if %}",
    "{{ 1 + 'a' }}",
    "{{ a.b }}",
)


def main() -> None:
    """Renders one conversation after the other until the parent is gone."""
    unicodedata.lookup("SPACE")
    time.localtime()
    for source in FIRST:
        with suppress(DotsError):
            run(source, {}, 0)
    serve(_rendered, MAX_NBYTES, opens_files=False)


def _rendered(question: Any) -> tuple[str, float]:
    names = "source", "values", "n_chars", "seconds", "spent"
    begun = time.monotonic()
    text = run(*(question[name] for name in names))
    return text, time.monotonic() - begun
