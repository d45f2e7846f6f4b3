"""Keeps a conversation as it goes on: which session it is saved in, and what goes into it.

A session begins with the first question, so nothing empty is left behind. What can't be written is
said once, and the conversation goes on unsaved. It knows no terminal.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

from dotscli.conversation.messages import Message
from dotscli.conversation.session_log import Header, Replayed, SessionLog
from dotscli.conversation.sessions import Sessions, name_for
from dotscli.errors import DotsError


class Journal:
    """Where the events of one conversation go.

    Args:
        sessions: the folder.
        header: of sessions that begin here.
        warn: gets why nothing is saved any more.
        name: of the session that begins with the first question, "" to make one up.
    """

    def __init__(
        self, sessions: Sessions, header: Header, warn: Callable[[str], None], name: str = ""
    ) -> None:
        self.sessions = sessions
        self.name = name
        self._header = header
        self._warn = warn
        self._log: SessionLog | None = None
        self._system = ""
        self._broken = False

    # What a conversation tells

    def system(self, text: str) -> None:
        """Another system prompt."""
        if text != self._system:
            self._system = text
            self._tell(lambda log: log.system(text))

    def asked(self, kept: int, question: str) -> None:
        """A question after the first `kept` turns."""
        if self._log is None and not self._broken:
            self._begin(self.name or name_for(question, datetime.datetime.now()))
        self._tell(lambda log: log.asked(kept, question))

    def piece(self, text: str) -> None:
        """A part of its answer."""
        if text:
            self._tell(lambda log: log.piece(text))

    def answered(self, text: str, complete: bool) -> None:
        """All of it."""
        self._tell(lambda log: log.answered(text, complete))

    def cut(self, start: int, stop: int) -> None:
        """Turns are taken away."""
        self._tell(lambda log: log.cut(start, stop))

    # What a reader asks for

    def open(self, name: str) -> Replayed:
        """Go on with a session.

        Raises:
            DotsError: it can't be; the one before stays open.
        """
        state, log = self.sessions.open(name)
        self.close()
        self._log, self.name, self._system, self._broken = log, name, state.system, False
        return state

    def fork(self, system: str, turns: Sequence[Message]) -> str:
        """Begin another session with these turns; its name.

        Raises:
            DotsError: it can't be written.
        """
        first = next((turn.content for turn in turns if turn.role == "user"), "")
        made, log = self.sessions.create(name_for(first, datetime.datetime.now()), self._header)
        self.close()
        self._log, self.name, self._system, self._broken = log, made, system, False
        try:
            _write(log, system, turns)
        except OSError as error:
            self._lost(error)
        return made

    def rename(self, name: str) -> None:
        """Call the session so, at once or when it begins.

        Raises:
            DotsError: the name is taken, or can't be one.
        """
        if self._log is not None:
            self.sessions.rename(self.name, name)
        elif self.sessions.path(name).exists():
            raise DotsError(f"there is a conversation named {name} already")
        self.name = name

    @property
    def fingerprint(self) -> str:
        """Of the model that answers now."""
        return self._header.fingerprint

    @property
    def saved(self) -> bool:
        """Whether the conversation is on the disk."""
        return self._log is not None

    @property
    def broken(self) -> bool:
        """Whether something could not be written, so that nothing is any more."""
        return self._broken

    def close(self) -> None:
        """Harmless when done twice."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _begin(self, name: str) -> None:
        try:
            self.name, self._log = self.sessions.create(name, self._header)
        except DotsError as error:
            self._broken = True
            self._warn(error.message)
            return
        if self._system:
            self._tell(lambda log: log.system(self._system))

    def _tell(self, event: Callable[[SessionLog], None]) -> None:
        if self._log is not None:
            try:
                event(self._log)
            except OSError as error:
                self._lost(error)

    def _lost(self, error: OSError) -> None:
        self._broken = True
        self.close()
        path = self.sessions.path(self.name)
        reason = error.strerror or str(error)
        self._warn(f"{path}: what follows is not saved: {reason}")


def _write(log: SessionLog, system: str, turns: Sequence[Message]) -> None:
    """Turns as if they had just been spoken."""
    if system:
        log.system(system)
    for n, turn in enumerate(turns):
        if turn.role == "user":
            log.asked(n, turn.content)
        else:
            log.answered(turn.content, turn.complete)
