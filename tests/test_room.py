"""A conversation that gets too long: turns are forgotten or summarised, or the context grows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.conversation.conversation import Conversation
from dotscli.conversation.messages import Message
from dotscli.conversation.room import fewest_forgotten, questions, to_summarise
from dotscli.conversation.sessions import Sessions
from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampling import Sampling
from dotscli.engine.stream import Piece
from dotscli.errors import DotsError
from tests.transcript import dots, on_a_terminal

N_CTX = 512
LONG = "hello and " * 15
GREEDY = Sampling(temp=0)
YES = ("--grammar", 'root ::= "yes"')


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Iterator[Engine]:
    with Engine.load(tiny_gguf, EngineOptions(n_ctx=N_CTX, n_threads=1)) as loaded:
        yield loaded


def turn_lists(sizes: Sequence[int]) -> list[Message]:
    """Questions and answers in turn, which take so many tokens each."""
    roles = ("user", "assistant")
    return [Message(roles[n % 2], "x" * size) for n, size in enumerate(sizes)]


def size_of(turns: Sequence[Message]) -> int:
    return sum(len(turn.content) for turn in turns)


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(0, 200))
def test_no_more_is_forgotten_than_has_to_be(sizes: list[int], room: int) -> None:
    turns = turn_lists(sizes)
    starts = questions(turns)[1:]
    wanted = next((n for n in starts if size_of(turns[n:]) <= room), 0)
    assert fewest_forgotten(turns, size_of, room) == wanted


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(0, 200))
def test_as_much_is_summarised_as_fits(sizes: list[int], room: int) -> None:
    turns = turn_lists(sizes)
    ends = [n for n in [*questions(turns)[1:], len(turns)] if size_of(turns[:n]) <= room]
    if not turns or not ends:
        with pytest.raises(DotsError, match="nothing that could be summarised"):
            to_summarise(turns, size_of, room)
    else:
        assert to_summarise(turns, size_of, room) == max(ends)


class Told:
    """A recorder that keeps turns as a session would."""

    def __init__(self) -> None:
        self.turns: list[tuple[str, str]] = []

    def system(self, text: str) -> None:
        pass

    def asked(self, kept: int, question: str) -> None:
        self.turns[kept:] = [("user", question)]

    def piece(self, text: str) -> None:
        pass

    def answered(self, text: str, complete: bool) -> None:
        self.turns.append(("assistant", text)) if text or complete else self.turns.pop()

    def cut(self, start: int, stop: int) -> None:
        del self.turns[start:stop]


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.turns]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_a_conversation_that_shifts_goes_on_for_ever(engine: Engine) -> None:
    told = Told()
    conversation = Conversation(engine, GREEDY, n_predict=20, recorder=told, shift=True)
    for n in range(12):
        pieces = list(conversation.send(f"{n} {LONG}"))
        assert pieces[-1].finish_reason in ("stop", "length")
        assert conversation.turns[-2].content.startswith(f"{n} ")
        assert said(conversation) == told.turns
    assert conversation.n_forgotten >= 10
    assert conversation.n_tokens <= N_CTX
    with pytest.raises(DotsError, match="would take"):
        conversation.send(LONG * 6)
    assert said(conversation) == told.turns


def test_an_answer_goes_on_where_the_context_gets_full_in_its_middle(engine: Engine) -> None:
    told = Told()
    conversation = Conversation(engine, GREEDY, n_predict=8, recorder=told, shift=True)
    for n in range(3):
        list(conversation.send(f"{n} {LONG}"))
    conversation.n_predict = 300
    before = conversation.n_forgotten
    pieces = list(conversation.send("and now"))
    assert conversation.n_forgotten > before
    assert pieces[-1].finish_reason in ("stop", "length")
    stats = pieces[-1].stats
    assert stats is not None
    tokens = [piece.token for piece in pieces if piece.token is not None]
    if pieces[-1].finish_reason == "length":
        assert stats.completion_tokens >= 300
    assert said(conversation)[-1] == ("assistant", text_of(pieces))
    assert said(conversation) == told.turns
    # no character was lost or doubled where it was gone on with
    assert engine.detokenize(tokens).decode("utf-8", "replace").startswith(text_of(pieces)[:40])
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


def test_what_follows_a_shift_is_what_the_shorter_conversation_says(engine: Engine) -> None:
    conversation = Conversation(engine, GREEDY, n_predict=8, shift=True)
    for n in range(2):
        list(conversation.send(f"{n} {LONG * 2}"))
    conversation.n_predict = 400
    before, pieces, answer = conversation.n_forgotten, [], conversation.send("and now")
    while conversation.n_forgotten == before:
        pieces.append(next(answer))
    pieces += [next(answer) for _ in range(20)]
    answer.close()  # type: ignore[attr-defined]
    n_before = [piece.token for piece in pieces].index(None)  # when the context was full
    made = [piece.token for piece in pieces[:n_before] if piece.token is not None]
    then = [piece.token for piece in pieces[n_before + 1 :] if piece.token is not None]
    prompt = [*conversation.encoded(conversation.turns[:-1]), *engine.vocabulary.whole(made)]
    again = list(engine.generate(prompt, GREEDY, n_predict=20))
    assert then[:20] == [piece.token for piece in again if piece.token is not None]


def test_without_shift_or_another_turn_the_answer_ends(engine: Engine) -> None:
    for shift in (False, True):
        conversation = Conversation(engine, GREEDY, shift=shift)
        *_, last = conversation.send("hello")
        assert last.finish_reason in ("context", "stop")
        assert conversation.n_forgotten == 0


def test_incomplete_characters_are_made_anew(engine: Engine) -> None:
    tokens = engine.tokenize("a中", parse_special=False)
    bytes_of = [engine.detokenize([token]) for token in tokens]
    assert engine.vocabulary.whole(tokens) == tokens
    for n in range(len(tokens)):
        whole = engine.vocabulary.whole(tokens[:n])
        complete = b"".join(bytes_of[:n]).decode("utf-8", "ignore")
        assert engine.detokenize(whole).decode() == complete
    assert engine.vocabulary.whole([]) == []


# At the prompt


def test_a_summary_takes_the_place_of_the_oldest_turns(tiny_gguf: Path, tmp_path: Path) -> None:
    lines = f"{LONG}\n{LONG}\n/summarise\nn\n/show info\n/compact\ny\n/show info\nhello\n"
    words = ("chat", "-m", tiny_gguf, *YES, "-c", "512", "--session", "it")
    done = dots(*words, stdin=lines, environ={"XDG_STATE_HOME": str(tmp_path)})
    assert done.exit_status == 0
    assert done.stdout == "yes\n" * 5
    assert "Put this in the place of the first 2 questions? (y/N)" in done.stderr
    assert "The conversation is as before." in done.stderr
    assert re.findall(r"turns +(\d)", done.stderr) == ["2", "1"]
    tokens = [int(n) for n in re.findall(r"context +(\d+) of", done.stderr)]
    assert tokens[1] < tokens[0] / 3
    state = Sessions(tmp_path / "dots/sessions").read("it").state
    assert state is not None
    assert [turn.content for turn in state.turns[1:]] == ["yes", "hello", "yes"]


def test_there_is_nothing_to_summarise_yet(tiny_gguf: Path) -> None:
    done = dots("chat", "-m", tiny_gguf, *YES, stdin="/summarise\n")
    assert "nothing that could be summarised: nothing has been asked yet" in done.stderr


def test_the_context_grows_and_the_conversation_goes_on(tiny_gguf: Path, tmp_path: Path) -> None:
    lines = (
        f"{LONG}\n{LONG * 9}\n/ctx\n/ctx 2k\n/set temp 0.1\n{LONG * 9}\n/ctx 1024\n"
        "/show params\n/ctx\n"
    )
    words = ("chat", "-m", tiny_gguf, *YES, "-c", "512", "--session", "it")
    done = dots(*words, stdin=lines, environ={"XDG_STATE_HOME": str(tmp_path)})
    assert done.exit_status == 0
    assert "error: the conversation would take" in done.stderr
    assert re.search(r"/ctx \d+ makes room for more, for [\d.]+ MiB of memory", done.stderr)
    assert "Loading again with 2,048 tokens: " in done.stderr
    assert "MiB more memory." in done.stderr
    assert "MiB less memory." in done.stderr
    assert done.stdout == "yes\nyes\n"
    assert "temp               0.1" in done.stderr  # settings go along
    used = re.findall(r"(\d+) of ([\d,]+) tokens;", done.stderr)
    assert [held for _, held in used] == ["512", "1,024"]
    assert int(used[1][0]) > 300  # and so does what was said


def test_a_context_that_can_not_be_had_changes_nothing(tiny_gguf: Path) -> None:
    lines = f"{LONG * 6}\n/ctx 10\n/ctx 100000000\n/ctx many\n/ctx 256\nhello\n/ctx\n"
    done = dots("chat", "-m", tiny_gguf, *YES, "-c", "1024", stdin=lines + f"{LONG}\n/ctx 256\n")
    assert done.stdout == "yes\n" * 3
    assert done.stderr.count("error: /ctx ") == 3
    assert "the conversation takes " in done.stderr


def test_another_model_goes_on_with_the_conversation(
    tiny_checkpoint: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    assert dots("quantize", tiny_checkpoint, "-o", other, "--type", "q8_0").exit_status == 0
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    (broken / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    assert dots("quantize", broken, "-o", tmp_path / "broken.gguf").exit_status == 0
    lines = (
        f"hello\n/model\n/model {tmp_path}/none.gguf\n/model {__file__}\n"
        f"/model {tmp_path}/broken.gguf\n/show info\n/model {other}\nagain\n/show info\n"
    )
    words = ("chat", "-m", tiny_gguf, *YES, "--session", "it")
    done = dots(*words, stdin=lines, environ={"XDG_STATE_HOME": str(tmp_path)})
    assert done.exit_status == 0
    assert done.stdout == "yes\nyes\n"
    assert done.stderr.count("error: ") == 3
    assert "never" in done.stderr
    assert re.findall(r"^model +(\S+)", done.stderr, re.M) == [str(tiny_gguf), str(other)]
    assert re.findall(r"turns +(\d)", done.stderr) == ["1", "2"]
    assert "it was begun with another model" in done.stderr


def test_a_conversation_that_shifts_says_so(tiny_gguf: Path) -> None:
    lines = f"{LONG * 3}\n" * 5
    words = ("chat", "-m", tiny_gguf, *YES, "-c", "512")
    assert "error: the conversation would take" in dots(*words, stdin=lines).stderr
    done = dots(*words, "--context-shift", stdin=lines)
    assert done.stdout == "yes\n" * 5
    assert "the context was full: the oldest 4 turns were forgotten" in done.stderr
    assert "error" not in done.stderr


# The line editor


def test_a_long_paste_is_a_name_in_the_line_and_whole_in_the_message(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    text = "\n".join(f"line {n}" for n in range(40))
    with on_a_terminal("chat", "-m", tiny_gguf, *YES, XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for(">>>")
        screen.type(f"look: \x1b[200~{text}\x1b[201~ and answer\r")
        shown = screen.wait_for("yes")
        assert "[paste 1: 40 lines]" in shown
        assert "line 7" not in shown
        screen.wait_for(">>>")
        screen.type("/exit\r")
        assert screen.wait() == 0
    sessions = Sessions(tmp_path / "dots/sessions")
    state = sessions.read(sessions.latest()).state
    assert state is not None
    assert state.turns[0].content == f"look: {text} and answer"
    history = (tmp_path / "dots/history").read_text()
    assert "+line 39 and answer" in history
    assert "[paste" not in history


def test_ctrl_g_opens_the_editor_of_the_user(tiny_gguf: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "ELSEWHERE" > "$1"\n')
    editor.chmod(0o700)
    places = {"XDG_STATE_HOME": str(tmp_path), "VISUAL": str(editor), "EDITOR": str(editor)}
    with on_a_terminal("chat", "-m", tiny_gguf, *YES, **places) as screen:
        screen.wait_for(">>>")
        screen.type("draft\x07")
        screen.wait_for("ELSEWHERE")
        screen.type("\r")
        screen.wait_for("yes")
        screen.wait_for(">>>")
        screen.type("/exit\r")
        assert screen.wait() == 0
