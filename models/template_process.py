"""Where a chat template renders: in this process if its source is known, else in a child's.

No budget inside of an interpreter can stop a single call (a `trim` of millions of characters, a
compiler on thousands of `if` blocks), so what a stranger has written runs where it can be killed.
It knows neither messages nor models.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping
from typing import Any

from dotscli.errors import DotsError
from dotscli.models import template_limits as budget
from dotscli.models.child import Child, ChildError
from dotscli.models.child_loop import MAX_FRAME

MAX_SOURCE = 256 * 1024  # characters; the longest published templates have about 20,000
MAX_NBYTES = 512 * 1024**2  # of the child, jinja2 and the messages included
HEADROOM_SECONDS = 0.5  # for the sandbox to notice it itself, which knows more
HINT = "`dots inspect MODEL` shows the template; --no-template does without"
# SHA-256 of sources that do nothing but put messages between tags, and where they come from.
KNOWN = {
    "b12a5b7808202a7eb4cca323d2f93ce8b739ea5f805408aea3d51dd4888653e6": (
        "templates/dots1.jinja, the built-in one"
    ),
    "7036c52dbd4bc3d2c8daff365aca3215cce1fefc6e59c777b2f31f5569187a96": (
        "nano/tokenizer_config.json, the built-in nano model"
    ),
}


@functools.cache
def _child() -> Child:
    return Child("dotscli.models.template_child", MAX_NBYTES)


def is_known(source: str) -> bool:
    """Whether a template may render in this process."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest() in KNOWN


def expect(source: str) -> None:
    """Starts what a template will need, so that the first conversation need not wait for it."""
    if source and not is_known(source):
        try:
            _child().start()
        except ChildError:
            pass  # said when it is needed


def let_go() -> None:
    """Ends the child, if there is one; the next template starts another."""
    _child().stop()


def rendered(
    source: str, values: Mapping[str, Any], n_chars: int, spent: float
) -> tuple[str, float]:
    """The text that a template makes of `values`, which hold `n_chars` characters of messages.

    And the seconds that it took; that a child had to start first is not among them.

    Args:
        spent: seconds that it took for the same conversation before; they count.

    Raises:
        DotsError: it is malformed, refuses the values, or uses more time, memory or text than a
            chat template needs.
    """
    if len(source) > MAX_SOURCE:
        raise DotsError(
            f"the chat template has {len(source)} characters, more than {MAX_SOURCE}", HINT
        )
    seconds = budget.MAX_SECONDS
    if spent >= seconds:
        raise DotsError(f"the chat template stopped: {budget.too_slow(seconds)}", HINT)
    if is_known(source):
        # jinja2 is loaded here, because `dots --help` must not.
        from dotscli.models.sandbox import run

        begun = time.monotonic()
        text = run(source, values, n_chars, seconds, spent)
        return text, time.monotonic() - begun
    question = {"source": source, "values": values, "n_chars": n_chars, "seconds": seconds}
    question["spent"] = spent
    try:
        answer = _child().ask(question, seconds - spent + HEADROOM_SECONDS)
    except ChildError as error:
        raise DotsError(_said(error, seconds), HINT) from error
    match answer:
        case [str(text), float(took)]:
            return text, took
    raise DotsError("the chat template failed: its process gave no text", HINT)


def _said(error: ChildError, seconds: float) -> str:
    match error.reason:
        case "time":
            return f"the chat template stopped: {budget.too_slow(seconds)}"
        case "memory":
            return f"the chat template stopped: {error}"
        case "bytes":
            return f"the conversation is too long: template and messages fill {MAX_FRAME} bytes"
        case "start":
            return f"the chat template can't be rendered: {error}"
        case _:
            return f"the chat template failed: {error}"
