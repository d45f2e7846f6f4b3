"""The commands of a conversation that concern saved ones: /save, /load, /fork, /sessions."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from dotscli.conversation.conversation import Conversation
from dotscli.conversation.journal import Journal
from dotscli.conversation.session_log import Replayed
from dotscli.conversation.sessions import Summary
from dotscli.errors import DotsError

MAX_LISTED = 20
WIDEST_QUESTION = 60  # characters


def session_command(
    conversation: Conversation, journal: Journal | None, name: str, argument: str
) -> str:
    """Run one of the commands; what there is to say.

    Raises:
        DotsError: it could not be done; nothing has changed then.
    """
    if journal is None:
        raise DotsError(
            f"{name} needs a conversation that is saved",
            hint="begin it without --no-save, or with --session NAME",
        )
    match name:
        case "/save":
            return _save(journal, argument)
        case "/load":
            if not argument:
                raise DotsError("/load needs a name", hint="/sessions lists them")
            return _load(conversation, journal, argument)
        case "/fork":
            return _fork(conversation, journal, argument)
        case _:
            return listing(journal.sessions.all()[:MAX_LISTED], current=journal.name)


def opened(state: Replayed, name: str, fingerprint: str) -> list[str]:
    """What to say of a session that goes on, a sentence each."""
    n = sum(1 for turn in state.turns if turn.role == "user")
    lines = [f"{name}: {n} question{'s' * (n != 1)} so far"]
    if state.header.fingerprint != fingerprint:
        lines.append(f"it was begun with another model, {state.header.model}")
    if state.unanswered:
        lines.append(f"the last question was not answered: {short_question(state.unanswered)}")
    if state.damaged:
        numbers = ", ".join(map(str, state.damaged[:5]))
        lines.append(f"{len(state.damaged)} damaged lines were left out: {numbers}")
    return lines


def listing(summaries: Sequence[Summary], current: str = "") -> str:
    """Sessions line by line: when, how many questions, the first of them."""
    if not summaries:
        return "There is no saved conversation yet."
    width = max(len(summary.name) for summary in summaries)
    lines = []
    for summary in summaries:
        when = datetime.datetime.fromtimestamp(summary.changed).strftime("%Y-%m-%d %H:%M")
        asked = summary.questions
        what = summary.problem or (short_question(asked[0]) if asked else "")
        mark = "*" if summary.name == current else " "
        lines.append(f"{mark} {summary.name:{width}}  {when}  {len(asked):3}  {what}".rstrip())
    return "\n".join(lines)


def short_question(text: str) -> str:
    """A question as one line of a list."""
    line = " ".join(text.split())
    return line if len(line) <= WIDEST_QUESTION else line[: WIDEST_QUESTION - 1] + "…"


def _save(journal: Journal, name: str) -> str:
    if name:
        journal.rename(name)
    if not journal.saved:
        later = f" as {journal.name}" if journal.name else ""
        return f"The conversation will be saved{later} from the first question on."
    return f"The conversation is saved as {journal.name}."


def _load(conversation: Conversation, journal: Journal, name: str) -> str:
    if name == journal.name and journal.saved:
        return f"This is {name}."
    before = journal.sessions.read(name)  # so that a template that fails changes nothing
    assert before.state is not None
    kept = conversation.system, conversation.turns
    conversation.restore(before.state.system, before.state.turns)
    try:
        state = journal.open(name)
    except DotsError:
        conversation.restore(*kept)
        raise
    return ". ".join(opened(state, name, journal.fingerprint)) + "."


def _fork(conversation: Conversation, journal: Journal, argument: str) -> str:
    asked = conversation.asked
    if not asked:
        raise DotsError("there is nothing to fork yet: nothing has been asked")
    if argument and not (argument.isdecimal() and 1 <= int(argument[:9]) <= len(asked)):
        raise DotsError(
            f"/fork {argument[:20]}: there is no such question", hint=f"give 1 to {len(asked)}"
        )
    n = int(argument) if argument else len(asked)
    end = asked[n] if n < len(asked) else len(conversation.turns)
    name = journal.fork(conversation.system, conversation.turns[:end])
    conversation.restore(conversation.system, conversation.turns[:end])
    return f"Going on in {name}, after question {n}; the conversation before is kept."
