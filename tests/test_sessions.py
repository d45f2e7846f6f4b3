"""Saved conversations: what has been said is on the disk, whatever ends the process."""

from __future__ import annotations

import datetime
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotscli.conversation import session_log
from dotscli.conversation.conversation import Conversation
from dotscli.conversation.journal import Journal
from dotscli.conversation.messages import Message
from dotscli.conversation.session_log import Header, SessionLog, replay
from dotscli.conversation.sessions import Sessions, name_for
from dotscli.conversation.slash import Command, execute, parse
from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampling import Sampling
from dotscli.errors import DotsError
from tests.transcript import dots, on_a_terminal

HEADER = Header("/models/m.gguf", "f" * 64, "2026-11-27T09:00:00+00:00")
YES = Sampling(grammar='root ::= "yes"')
ENDLESS = Sampling(grammar='root ::= "ab" root')
GRAMMAR = ("--grammar", 'root ::= "yes"')


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Iterator[Engine]:
    with Engine.load(tiny_gguf, EngineOptions(n_ctx=512, n_threads=1)) as loaded:
        yield loaded


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "state" / "sessions")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def journal(sessions: Sessions, warnings: list[str]) -> Iterator[Journal]:
    made = Journal(sessions, HEADER, warnings.append)
    yield made
    made.close()


@pytest.fixture
def conversation(engine: Engine, journal: Journal) -> Conversation:
    return Conversation(engine, YES, recorder=journal)


def run(conversation: Conversation, journal: Journal, line: str) -> str:
    command = parse(line)
    assert isinstance(command, Command)
    return execute(conversation, command, journal).text


def on_disk(journal: Journal) -> tuple[str, list[Message]]:
    state = journal.sessions.read(journal.name).state
    assert state is not None
    assert not state.damaged
    return state.system, state.turns


# What lines come to

TEXT = st.text(max_size=8)
ANSWER = st.tuples(st.lists(TEXT, max_size=3), st.sampled_from(["whole", "broken off", "none"]))
EVENT = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 9), TEXT, ANSWER),
    st.tuples(st.just("cut"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("system"), TEXT),
)


@settings(max_examples=60, deadline=None)
@given(events=st.lists(EVENT, max_size=8), data=st.data())
def test_whatever_a_kill_leaves_is_a_state_that_was(
    events: list[tuple[object, ...]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "s"
    log = SessionLog(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    log.begin(HEADER)
    turns: list[Message] = []
    system = ""
    states = [(path.stat().st_size, system, turns)]

    def keep(new: list[Message]) -> list[Message]:
        states.append((path.stat().st_size, system, new))
        return new

    for event in events:
        match event:
            case ("ask", int(kept), str(text), (list(pieces), str(how))):
                before = turns[: min(kept, len(turns)) // 2 * 2]
                log.asked(len(before), text)
                keep(turns)
                said = ""
                for piece in pieces if how != "none" else []:
                    log.piece(piece)
                    said += piece
                    answer = Message("assistant", said, complete=False)
                    keep([*before, Message("user", text), answer] if said else turns)
                if how == "whole":
                    log.answered(said, True)
                    turns = keep([*before, Message("user", text), Message("assistant", said)])
                elif said:
                    turns = states[-1][2]
            case ("cut", int(start), int(stop)):
                start, stop = sorted((min(start, len(turns)), min(stop, len(turns))))
                log.cut(start, stop)
                turns = keep(turns[:start] + turns[stop:])
            case ("system", str(text)):
                log.system(text)
                system = text
                keep(turns)
    log.close()
    bytes_ = path.read_bytes()
    end = data.draw(st.integers(states[0][0], len(bytes_)), "bytes that are left")
    found = replay(bytes_[:end], "it")
    _, system, turns = [state for state in states if state[0] <= end][-1]
    assert (found.system, found.turns, found.damaged) == (system, turns, [])


@pytest.mark.parametrize(
    "line",
    [
        b"not json", b"[]", b'{"ask": -1, "text": "x"}', b'{"ask": 3, "text": "x"}',
        b'{"ask": 0}', b'{"cut": [0, 1]}', b'{"cut": [0]}', b'{"piece": "alone"}',
        b'{"answer": "alone", "complete": true}', b'{"system": 5}', b"\xff\xfe", b"",
        b'{"ask": 1e400, "text": ""}', b"[" * 100_000, b'{"other": 1}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_left_out_and_told(line: bytes) -> None:
    head = json.dumps({"session": 1, **HEADER.__dict__}).encode()
    good = [b'{"ask": 0, "text": "q"}', b'{"answer": "a", "complete": true}']
    state = replay(b"\n".join([head, line, *good, b""]), "it")
    assert state.damaged == [2]
    assert [turn.content for turn in state.turns] == ["q", "a"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not a session of dots"), (b"\n", "is not a session"), (b"{}\n", "not a session"),
        (b'{"session": 1}\n', "is not a session"),
        (b'{"session": 2, "model": "", "fingerprint": "", "created": ""}\n', "of format 2"),
    ],
)  # fmt: skip
def test_what_is_no_session_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(DotsError, match=reason):
        replay(text, "it")


# What a conversation tells


def test_what_is_said_is_what_is_on_the_disk(conversation: Conversation, journal: Journal) -> None:
    conversation.system = "Be brief."
    assert not journal.saved
    for text in ("one", "two", "three"):
        list(conversation.send(text))
        assert on_disk(journal) == ("Be brief.", conversation.turns)
    list(conversation.regenerate())
    list(conversation.ask_again("drei \ud800"))
    assert on_disk(journal) == ("Be brief.", conversation.turns)
    assert [turn.content for turn in conversation.turns][4:] == ["drei \ud800", "yes"]
    conversation.drop()
    assert on_disk(journal) == ("Be brief.", conversation.turns)
    conversation.undo()
    conversation.system = ""
    assert on_disk(journal) == ("", conversation.turns)
    conversation.clear()
    assert on_disk(journal) == ("", [])


def test_a_broken_off_answer_is_there_piece_by_piece(
    conversation: Conversation, journal: Journal
) -> None:
    conversation.sampling = ENDLESS
    pieces = conversation.send("hello")
    text = ""
    for _ in range(5):
        text += next(pieces).text
        assert on_disk(journal)[1][1] == Message("assistant", text, complete=False)
    pieces.close()
    assert on_disk(journal) == ("", conversation.turns)


def test_an_answer_without_a_word_leaves_the_one_before(
    conversation: Conversation, journal: Journal
) -> None:
    list(conversation.send("hello"))
    before = list(conversation.turns)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(conversation.regenerate(interrupt))
    assert conversation.turns == before
    state = journal.sessions.read(journal.name).state
    assert state is not None
    assert (state.turns, state.unanswered) == (before, "hello")


def test_a_disk_that_is_full_is_said_once_and_the_talk_goes_on(
    conversation: Conversation,
    journal: Journal,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    list(conversation.send("one"))
    kept = list(conversation.turns)
    monkeypatch.setattr(session_log, "MAX_NBYTES", 400)
    for _ in range(3):
        list(conversation.send("two"))
    assert len(conversation.turns) == 8
    assert len(warnings) == 1
    assert "not saved: it has reached" in warnings[0]
    assert on_disk(journal)[1][:2] == kept


def test_a_folder_that_can_t_be_written_is_said_once(
    engine: Engine, tmp_path: Path, warnings: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(Sessions(tmp_path / "file" / "sessions"), HEADER, warnings.append)
    conversation = Conversation(engine, YES, recorder=journal)
    list(conversation.send("one"))
    list(conversation.send("two"))
    assert len(conversation.turns) == 4
    assert len(warnings) == 1
    assert "can't be saved" in warnings[0]


# The commands of a conversation


def test_save_gives_a_name_before_or_after(conversation: Conversation, journal: Journal) -> None:
    assert run(conversation, journal, "/save mine") == (
        "The conversation will be saved as mine from the first question on."
    )
    list(conversation.send("one"))
    assert run(conversation, journal, "/save") == "The conversation is saved as mine."
    run(conversation, journal, "/save yours")
    list(conversation.send("two"))
    assert [one.name for one in journal.sessions.all()] == ["yours"]
    assert on_disk(journal) == ("", conversation.turns)


def test_fork_and_load(conversation: Conversation, journal: Journal) -> None:
    for text in ("one", "two", "three"):
        list(conversation.send(text))
    whole, turns = journal.name, list(conversation.turns)
    with pytest.raises(DotsError, match="no such question"):
        run(conversation, journal, "/fork 4")
    said = run(conversation, journal, "/fork 2")
    assert f"Going on in {journal.name}, after question 2" in said
    assert journal.name != whole
    assert conversation.turns == turns[:4]
    list(conversation.send("other"))
    assert on_disk(journal) == ("", conversation.turns)
    fork = journal.name
    assert run(conversation, journal, f"/load {whole}") == f"{whole}: 3 questions so far."
    assert conversation.turns == turns
    listed = run(conversation, journal, "/sessions")
    assert f"* {whole}" in listed
    assert f"  {fork}" in listed
    with pytest.raises(DotsError, match="no conversation named nothing"):
        run(conversation, journal, "/load nothing")
    assert conversation.turns == turns
    list(conversation.send("four"))
    assert on_disk(journal) == ("", conversation.turns)


def test_without_saving_the_commands_say_so(engine: Engine) -> None:
    conversation = Conversation(engine, YES)
    for line in ("/save", "/load x", "/fork", "/sessions"):
        with pytest.raises(DotsError, match="needs a conversation that is saved"):
            execute(conversation, parse(line))  # type: ignore[arg-type]


# The folder


def test_nobody_else_may_read_them(conversation: Conversation, journal: Journal) -> None:
    list(conversation.send("secret"))
    path = journal.sessions.path(journal.name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_name_tells_the_day_and_the_question(sessions: Sessions) -> None:
    now = datetime.datetime(2026, 11, 27)
    assert name_for("What is dots?  And why?", now) == "2026-11-27-what-is-dots-and-why"
    assert name_for("什么是 dots", now) == "2026-11-27-什么是-dots"
    assert name_for("?", now) == "2026-11-27"
    made = [sessions.create("a", HEADER)[0] for _ in range(3)]
    assert made == ["a", "a-2", "a-3"]
    for question in ("x" * 500, "../../etc/passwd", "为" * 200, "\ud800 a", "e\u0301" * 99):
        made_up, log = sessions.create(name_for(question, now), HEADER)
        log.close()
        assert sessions.path(made_up).parent == sessions.folder


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "-o", "a\nb", "x" * 101, " a", "a:"]
)
def test_what_is_no_file_name_is_refused(name: str, sessions: Sessions) -> None:
    with pytest.raises(DotsError, match="can't be a session's name"):
        sessions.path(name)


def test_one_process_at_a_time_writes(sessions: Sessions) -> None:
    name, log = sessions.create("mine", HEADER)
    with pytest.raises(DotsError, match="mine is open in another dots chat"):
        sessions.open(name)
    log.close()
    state, log = sessions.open(name)
    assert state.turns == []
    log.close()


def test_a_line_that_was_cut_off_is_gone_when_it_goes_on(sessions: Sessions) -> None:
    name, log = sessions.create("mine", HEADER)
    log.asked(0, "q")
    log.piece("half")
    log.close()
    with sessions.path(name).open("ab") as file:
        file.write(b'{"piece": "ne')
    state, log = sessions.open(name)
    assert state.turns[1] == Message("assistant", "half", complete=False)
    log.asked(2, "next")
    log.answered("done", True)
    log.close()
    read = sessions.read(name)
    assert read.questions == ["q", "next"]
    assert read.state is not None
    assert read.state.damaged == []


def test_what_is_no_file_stops_nothing(sessions: Sessions) -> None:
    sessions.create("good", HEADER)[1].close()
    os.mkfifo(sessions.folder / "pipe.jsonl")
    (sessions.folder / "dir.jsonl").mkdir()
    (sessions.folder / "bad.jsonl").write_bytes(b"\0" * 100)
    with (sessions.folder / "large.jsonl").open("wb") as file:
        file.truncate(session_log.MAX_NBYTES + 1)
    found = {one.name: one.problem for one in sessions.all()}
    assert found.pop("good") == ""
    assert set(found) == {"pipe", "dir", "bad", "large"}
    assert all(found.values())
    for name in found:
        with pytest.raises(DotsError):
            sessions.open(name)
    assert sessions.latest() == "good"


def test_rename_replaces_nothing(sessions: Sessions) -> None:
    for name in ("a", "b"):
        sessions.create(name, HEADER)[1].close()
    with pytest.raises(DotsError, match="named b already"):
        sessions.rename("a", "b")
    sessions.rename("a", "c")
    assert {one.name for one in sessions.all()} == {"b", "c"}
    with pytest.raises(DotsError, match="no conversation named a"):
        sessions.remove("a")


def test_a_session_of_a_million_lines_is_read_in_seconds() -> None:
    head = json.dumps({"session": 1, **HEADER.__dict__}).encode()
    lines = [head, b'{"ask": 0, "text": "q"}', *[b'{"piece": "a"}'] * 300_000]
    lines += [b'{"ask": %d, "text": "q"}\n{"answer": "a", "complete": true}' % (2 * n + 2)
              for n in range(20_000)]  # fmt: skip
    began = time.monotonic()
    state = replay(b"\n".join([*lines, b""]), "it")
    assert len(state.turns) == 40_002
    assert len(state.turns[1].content) == 300_000
    assert time.monotonic() - began < 30


# The command line


def test_a_kill_loses_no_word_that_was_shown(tiny_gguf: Path, tmp_path: Path) -> None:
    places = {"XDG_STATE_HOME": str(tmp_path)}
    with on_a_terminal("chat", "-m", tiny_gguf, *GRAMMAR, **places) as screen:
        screen.wait_for(">>>")
        screen.type("first\r")
        screen.wait_for(" tok · ")
        screen.wait_for(">>>")
        screen.type("/exit\r")
        assert screen.wait() == 0
    endless = ("--grammar", 'root ::= "ab" root', "-c", "4096")
    with on_a_terminal("chat", "--continue", *endless, **places) as screen:
        screen.wait_for("1 question so far")
        screen.wait_for(">>>")
        screen.type("second\r")
        screen.wait_for("ab" * 20)
        screen.process.send_signal(signal.SIGKILL)
        assert screen.wait() == -signal.SIGKILL
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    [one] = dots("sessions", "--json", environ=environ).json["sessions"]
    assert one["questions"] == 2
    assert one["model"] == str(tiny_gguf)
    shown = dots("sessions", "show", one["name"], "--json", environ=environ).json
    assert [turn["complete"] for turn in shown["turns"]] == [True, True, True, False]
    assert shown["turns"][3]["content"].startswith("ab" * 20)


def test_a_named_conversation_goes_on_from_a_pipe(tiny_gguf: Path, tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    words = ("chat", "-m", tiny_gguf, "--session", "work", *GRAMMAR)
    dots(*words, "-s", "Be brief.", stdin="one\n", environ=environ)
    done = dots(*words, stdin="two\n", environ=environ)
    assert done.stdout == "yes\n"
    assert "work: 1 question so far" in done.stderr
    shown = dots("sessions", "show", "work", "--json", environ=environ).json
    assert [turn["content"] for turn in shown["turns"]] == ["one", "yes", "two", "yes"]
    assert shown["system"] == "Be brief."


def test_a_pipe_is_not_saved_unless_asked(tiny_gguf: Path, tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    dots("chat", "-m", tiny_gguf, *GRAMMAR, stdin="one\n", environ=environ)
    assert dots("sessions", "--json", environ=environ).json["sessions"] == []
    dots("chat", "-m", tiny_gguf, "--save", *GRAMMAR, stdin="one\n", environ=environ)
    assert len(dots("sessions", "--json", environ=environ).json["sessions"]) == 1


def test_another_model_s_session_opens_with_a_word_about_it(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes() + b"\0" * 32)
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    words = ("--session", "work", *GRAMMAR)
    dots("chat", "-m", tiny_gguf, *words, stdin="one\n", environ=environ)
    done = dots("chat", "-m", other, *words, stdin="two\n", environ=environ)
    assert f"it was begun with another model, {tiny_gguf}" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--continue",), 1, "there is no saved conversation in"),
        (("--continue", "--session", "a"), 2, "name two conversations"),
        (("--session", "a", "--no-save"), 2, "--no-save contradicts"),
        (("--session", "../a"), 1, "can't be a session's name"),
    ],
)
def test_flags_that_can_t_be_met(
    words: tuple[str, ...], status: int, message: str, tiny_gguf: Path, tmp_path: Path
) -> None:
    done = dots("chat", "-m", tiny_gguf, *words, environ={"XDG_STATE_HOME": str(tmp_path)})
    assert done.exit_status == status
    assert message in done.stderr


def test_list_show_export_rename_and_remove(tiny_gguf: Path, tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    words = ("chat", "-m", tiny_gguf, *GRAMMAR, "--session")
    dots(*words, "a", stdin="# What?\n", environ=environ)
    time.sleep(0.02)
    dots(*words, "b", stdin="other\n", environ=environ)
    listed = dots("sessions", environ=environ).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["name", "b", "a"]
    assert listed[2].endswith("# What?")
    out = tmp_path / "a.md"
    assert dots("sessions", "export", "a", "-o", out, environ=environ).exit_status == 0
    text = out.read_text()
    assert "## Question\n\n> # What?\n\nyes\n" in text
    assert dots("sessions", "show", "a", environ=environ).stdout == text
    again = dots("sessions", "export", "a", "-o", out, environ=environ)
    assert "already exists" in again.stderr
    assert dots("sessions", "rename", "a", "c", environ=environ).exit_status == 0
    assert dots("sessions", "rm", "b", "c", environ=environ).exit_status == 0
    done = dots("sessions", environ=environ)
    assert (done.stdout, done.exit_status) == ("", 0)
    assert "there is no saved conversation" in done.stderr
    for wrong in (("show",), ("rm",), ("rename", "a"), ("list", "a"), ("burn", "a")):
        assert dots("sessions", *wrong, environ=environ).exit_status == 2


def test_edit_at_a_terminal(tiny_gguf: Path, tmp_path: Path) -> None:
    places = {"XDG_STATE_HOME": str(tmp_path)}
    with on_a_terminal("chat", "-m", tiny_gguf, *GRAMMAR, **places) as screen:
        screen.wait_for(">>>")
        screen.type("helo\r")
        screen.wait_for(" tok · ")
        screen.wait_for(">>>")
        screen.type("/edit\r")
        screen.wait_for("helo")
        screen.type("\x7flo there\r")
        screen.wait_for(" tok · ")
        screen.wait_for(">>>")
        screen.type("/exit\r")
        assert screen.wait() == 0
    [one] = Sessions(tmp_path / "dots" / "sessions").all()
    assert one.questions == ["hello there"]
