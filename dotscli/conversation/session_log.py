"""A conversation as lines of JSON that are only ever added, so that a kill loses next to nothing.

The first line says whose conversation it is, each further one what happened: an answer is on the
disk piece by piece, and again as a whole when it has ended. Replaying the lines gives the turns; a
last line that was cut off counts as not there. It knows no folder and no names.

    {"session": 1, "model": PATH, "fingerprint": HEX, "created": ISO 8601}
    {"system": TEXT}                     the system prompt from here on
    {"ask": K, "text": TEXT}             the first K turns stay, then this question
    {"piece": TEXT}                      a part of its answer
    {"answer": TEXT, "complete": BOOL}   all of it; without one, the pieces are a broken-off answer
    {"cut": [I, J]}                      turns I to J - 1 are taken away
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

from dotscli.conversation.messages import Message
from dotscli.errors import DotsError
from dotscli.models.json_file import parse_object

FORMAT = 1
MAX_NBYTES = 64 << 20  # of a session: some hundred novels
MAX_LINE_NBYTES = 8 << 20
MAX_TURNS = 100_000


@dataclass(frozen=True)
class Header:
    """Whose conversation it is: the model's file and fingerprint, and when it began."""

    model: str
    fingerprint: str
    created: str


@dataclass
class Replayed:
    """What the lines of a session come to.

    Attributes:
        unanswered: a last question that got no word of an answer; it is not among the turns.
        damaged: lines, by number, that say nothing that can be.
        nbytes: where the last whole line ends.
    """

    header: Header
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    unanswered: str = ""
    damaged: list[int] = field(default_factory=list)
    nbytes: int = 0


@dataclass
class _Attempt:
    """A question that is being answered, after the first `kept` turns."""

    kept: int
    question: str
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def end(self, turns: list[Message], text: str, complete: bool) -> None:
        """Question and answer take the place of what was behind the turns that are kept."""
        turns[self.kept :] = [
            Message("user", self.question), Message("assistant", text, complete)
        ]  # fmt: skip


def replay(data: bytes, origin: str) -> Replayed:
    """The state after all lines.

    Args:
        data: the file's bytes.
        origin: its name, for the error.

    Raises:
        DotsError: it is no session, or one of another format.
    """
    end = data.rfind(b"\n") + 1
    lines = data[:end].split(b"\n")[:-1]
    state = Replayed(_header(lines[0] if lines else b"", origin), nbytes=end)
    attempt: _Attempt | None = None
    for number, line in enumerate(lines[1:], start=2):
        try:
            attempt = _take(state, attempt, line)
        except (DotsError, ValueError):
            state.damaged.append(number)
    if attempt is not None:
        state.unanswered = "" if attempt.text else attempt.question
        _end(state, attempt)
    return state


def _header(line: bytes, origin: str) -> Header:
    try:
        values = parse_object(line, origin)
    except DotsError:
        values = {}
    texts = [values.get(key) for key in ("model", "fingerprint", "created")]
    if "session" not in values or not all(isinstance(text, str) for text in texts):
        raise DotsError(f"{origin} is not a session of dots")
    if values["session"] != FORMAT:
        raise DotsError(
            f"{origin} is a session of format {str(values['session'])[:20]}, this dots reads "
            f"{FORMAT}",
            hint="pip install --upgrade dotscli",
        )
    return Header(*(str(text) for text in texts))


def _take(state: Replayed, attempt: _Attempt | None, line: bytes) -> _Attempt | None:
    """Apply one line; the question that is being answered after it.

    Raises:
        DotsError, ValueError: the line says nothing that can be; nothing has changed.
    """
    if len(line) > MAX_LINE_NBYTES:
        raise ValueError
    values = parse_object(line, "a line")
    match values:
        case {"piece": str(text)} if attempt is not None:
            attempt.pieces.append(text)
            return attempt
        case {"answer": str(text), "complete": bool(complete)} if attempt is not None:
            attempt.end(state.turns, text, complete)
            return None
        case {"system": str(text)}:
            _end(state, attempt)
            state.system = text
            return None
        case {"ask": int(kept), "text": str(text)}:
            _end(state, attempt)
            if not 0 <= kept <= len(state.turns) < MAX_TURNS:
                raise ValueError
            return _Attempt(kept, text)
        case {"cut": [int(start), int(stop)]}:
            _end(state, attempt)
            if not 0 <= start <= stop <= len(state.turns):
                raise ValueError
            del state.turns[start:stop]
            return None
    raise ValueError


def _end(state: Replayed, attempt: _Attempt | None) -> None:
    """An answer that nobody has ended stays as far as it came; without a word it never was."""
    if attempt is not None and (text := attempt.text):
        attempt.end(state.turns, text, complete=False)


class SessionLog:
    """Adds lines to an open file.

    Args:
        descriptor: open for appending; closed with the log.
        nbytes: what is in it.

    Raises, all methods: OSError, when a line can't be written.
    """

    def __init__(self, descriptor: int, nbytes: int = 0) -> None:
        self._descriptor = descriptor
        self._nbytes = nbytes

    def begin(self, header: Header) -> None:
        """The first line."""
        self._add({"session": FORMAT, **header.__dict__})

    def system(self, text: str) -> None:
        """Another system prompt."""
        self._add({"system": text})

    def asked(self, kept: int, question: str) -> None:
        """A question after the first `kept` turns; on the disk before it is answered."""
        self._add({"ask": kept, "text": question}, sync=True)

    def piece(self, text: str) -> None:
        """A part of the answer; it survives the process, and perhaps not the machine."""
        self._add({"piece": text})

    def answered(self, text: str, complete: bool) -> None:
        """The whole answer."""
        self._add({"answer": text, "complete": complete}, sync=True)

    def cut(self, start: int, stop: int) -> None:
        """Turns are taken away."""
        self._add({"cut": [start, stop]}, sync=True)

    def close(self) -> None:
        """Harmless when done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _add(self, values: dict[str, object], *, sync: bool = False) -> None:
        # ensure_ascii: half a surrogate pair, as some tokens give, has no UTF-8
        line = json.dumps(values).encode("ascii") + b"\n"
        if self._nbytes + len(line) > MAX_NBYTES:
            raise OSError(0, f"it has reached {MAX_NBYTES >> 20} MiB")
        done = 0
        while done < len(line):
            done += os.write(self._descriptor, line[done:])
        self._nbytes += len(line)
        if sync:
            os.fsync(self._descriptor)
