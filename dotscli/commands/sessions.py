"""`dots sessions`: the saved conversations, to list, show, export, rename and remove,
and what is kept of their contexts.
"""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path

from dotscli.conversation.session_markdown import markdown
from dotscli.conversation.sessions import Sessions, Summary
from dotscli.conversation.slash_sessions import short_question
from dotscli.errors import DotsError, usage
from dotscli.folders import sessions_folder, states_folder
from dotscli.options.chat import Action, SessionsFlags
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes, format_seconds

COLUMNS = ("name", "last used", "questions", "size", "first question")
N_NAMES = {Action.LIST: 0, Action.CACHE: 0, Action.SHOW: 1, Action.EXPORT: 1, Action.RENAME: 2}


def sessions(
    terminal: Terminal, action: Action, names: list[str], flags: SessionsFlags, as_json: bool
) -> None:
    """Do it.

    Raises:
        DotsError: there is no such conversation, or it can't be done.
    """
    kept = Sessions(sessions_folder(terminal.environ))
    wanted = N_NAMES.get(action)
    if (wanted is not None and len(names) != wanted) or (action is Action.RM and not names):
        what = {0: "no name", 1: "one name", 2: "two names"}.get(wanted or 0, "names")
        what = "at least one name" if action is Action.RM else what
        raise usage(f"dots sessions {action.value} takes {what}", "dots sessions --help")
    match action:
        case Action.CACHE:
            _cache(terminal, states_folder(terminal.environ), as_json)
        case Action.LIST:
            _list(terminal, kept, as_json)
        case Action.SHOW:
            _show(terminal, kept.read(names[0]), as_json)
        case Action.EXPORT:
            _export(terminal, kept.read(names[0]), flags.out)
        case Action.RENAME:
            kept.rename(*names)
            terminal.note(f"{names[0]} is {names[1]} now")
        case Action.RM:
            for name in names:
                kept.path(name)
            for name in names:
                kept.remove(name)
                terminal.note(f"{name} was removed")


def _list(terminal: Terminal, kept: Sessions, as_json: bool) -> None:
    found = kept.all()
    if as_json:
        terminal.json({"folder": str(kept.folder), "sessions": [_json(one) for one in found]})
        return
    if not found:
        terminal.note(f"there is no saved conversation in {kept.folder}; dots chat begins one")
        return
    terminal.table(COLUMNS, [_row(one) for one in found], right=("questions", "size"))


def _cache(terminal: Terminal, folder: Path, as_json: bool) -> None:
    """What contexts held, so that it need not be read again."""
    from dotscli.engine.state_file import SUFFIX, read_info
    from dotscli.engine.state_store import limit_nbytes

    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: -path.stat().st_mtime):
        with contextlib.suppress(DotsError):
            info = read_info(path)
            found.append((info, path.stat()))
    limit = limit_nbytes(folder)
    if as_json:
        states = [
            {"path": str(i.path), "tokens": len(i.tokens), "bytes": s.st_size,
             "prefill_s": round(i.prefill_s, 3), "used": _utc(s.st_mtime)}
            for i, s in found
        ]  # fmt: skip
        terminal.json({"folder": str(folder), "limit_bytes": limit, "states": states})
        return
    total = sum(status.st_size for _, status in found)
    rows = [
        (_local(status.st_mtime), f"{len(info.tokens):,}", format_bytes(status.st_size),
         format_seconds(info.prefill_s))
        for info, status in found
    ]  # fmt: skip
    terminal.paragraph(f"{folder}: {format_bytes(total)} of at most {format_bytes(limit)}")
    if rows:
        terminal.table(("last used", "tokens", "size", "to read again"), rows, ("tokens", "size"))


def _local(timestamp: float) -> str:
    return datetime.datetime.fromtimestamp(timestamp).strftime("%Y-%m-%d %H:%M")


def _utc(timestamp: float) -> str:
    when = datetime.datetime.fromtimestamp(timestamp, datetime.timezone.utc)
    return when.isoformat(timespec="seconds")


def _row(one: Summary) -> tuple[str, ...]:
    asked = one.questions
    what = one.problem or (short_question(asked[0]) if asked else "")
    return one.name, _local(one.changed), str(len(asked)), format_bytes(one.nbytes), what


def _json(one: Summary) -> dict[str, object]:
    return {
        "name": one.name,
        "path": str(one.path),
        "bytes": one.nbytes,
        "changed": _utc(one.changed),
        "model": one.state.header.model if one.state else None,
        "questions": len(one.questions),
        "problem": one.problem or None,
    }


def _show(terminal: Terminal, one: Summary, as_json: bool) -> None:
    assert one.state is not None
    if not as_json:
        terminal.write(markdown(one.name, one.state))
        return
    turns = [
        {"role": turn.role, "content": turn.content, "complete": turn.complete}
        for turn in one.state.turns
    ]
    terminal.json(_json(one) | {"system": one.state.system or None, "turns": turns})


def _export(terminal: Terminal, one: Summary, output: Path | None) -> None:
    assert one.state is not None
    text = markdown(one.name, one.state)
    if output is None:
        terminal.write(text)
        return
    try:
        with output.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except FileExistsError:
        raise DotsError(f"{output} already exists", hint="give another name after -o") from None
    except OSError as error:
        raise DotsError(f"{output} can't be written: {error.strerror}") from error
    terminal.note(f"wrote {output}")
