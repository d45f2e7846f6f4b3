"""Which saved conversation `dots chat` goes on with, and where it is saved."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.conversation.conversation import Conversation
from dotscli.conversation.journal import Journal
from dotscli.conversation.session_log import Header
from dotscli.conversation.sessions import Sessions, check_name
from dotscli.conversation.slash_sessions import opened
from dotscli.errors import usage
from dotscli.folders import sessions_folder, states_folder
from dotscli.models.identity import fingerprint
from dotscli.options.chat import SessionFlags
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.engine import Engine


WRITING = "writing the context to the disk; Ctrl-C leaves it out"


@dataclass(frozen=True)
class Wanted:
    """What the flags come to.

    Attributes:
        sessions: the folder, None where nothing is saved.
        name: of the session, "" for a new one.
        exists: whether it goes on with that one.
    """

    sessions: Sessions | None
    name: str = ""
    exists: bool = False


def wanted_session(terminal: Terminal, flags: SessionFlags, *, at_keyboard: bool) -> Wanted:
    """Look at the flags and at the folder; nothing is opened and nothing is written.

    Raises:
        DotsError: they contradict each other, there is no conversation to go on with, or the name
            can't be one.
    """
    named = flags.session is not None or flags.resume
    if flags.session is not None and flags.resume:
        raise usage("--continue and --session name two conversations", "give one of them")
    if named and flags.save is False:
        raise usage("--no-save contradicts --continue and --session", "leave one of them out")
    sessions = Sessions(sessions_folder(terminal.environ))
    if flags.resume:
        return Wanted(sessions, sessions.latest(), exists=True)
    if flags.session is not None:
        check_name(flags.session)
        return Wanted(sessions, flags.session, sessions.path(flags.session).exists())
    saved = at_keyboard if flags.save is None else flags.save
    return Wanted(sessions if saved else None)


def wanted_after(wanted: Wanted, journal: Journal | None) -> Wanted:
    """The session that goes on when another model has been loaded."""
    if journal is None or journal.broken:
        return Wanted(None)
    return Wanted(wanted.sessions, journal.name, journal.saved)


def model_of(wanted: Wanted, model: str | None) -> str | None:
    """The model to load: the one that was given, else the session's if its file is still there.

    Raises:
        DotsError: the session can't be read.
    """
    if model is not None or wanted.sessions is None or not wanted.exists:
        return model
    state = wanted.sessions.read(wanted.name).state
    assert state is not None
    return state.header.model if Path(state.header.model).is_file() else None


def keep(
    terminal: Terminal, wanted: Wanted, conversation: Conversation, path: Path
) -> Journal | None:
    """Open the session, and save from here on what is said.

    Args:
        path: of the model.

    Raises:
        DotsError: it can't be opened.
    """
    if wanted.sessions is None:
        return None
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    header = Header(str(path.resolve()), fingerprint(path), now)
    journal = Journal(wanted.sessions, header, terminal.warn, wanted.name)
    if wanted.exists:
        given = conversation.system
        state = journal.open(wanted.name)
        try:
            conversation.restore(state.system, state.turns)
        except BaseException:
            journal.close()
            raise
        for line in opened(state, wanted.name, header.fingerprint):
            terminal.note(line)
        conversation.recorder = journal
        if given:
            conversation.system = given
    else:
        conversation.recorder = journal
        journal.system(conversation.system)
    return journal


def keep_states(terminal: Terminal, engine: Engine) -> str | None:
    """Keep what the context holds as well; what to say when that happens for the first time."""
    from dotscli.engine.state_store import limit_nbytes

    folder = states_folder(terminal.environ)
    engine.keep_states(folder, terminal.warn)
    if folder.exists():
        return None
    return (
        f"so that it need not be read again, the context is kept in {folder} (at most "
        f"{format_bytes(limit_nbytes(folder))}; dots sessions cache lists it; --no-save)"
    )
