"""Tokens guessed ahead: the answer stays the same, whatever is guessed and whenever it ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.engine import Engine, EngineOptions
from dotscli.engine.draft import (
    FORGOTTEN,
    GAIN,
    IN_MEMORY,
    LONGEST,
    MOST,
    SHORTEST,
    Costs,
    Drafts,
    Lookup,
    draft_length,
)
from dotscli.engine.sampling import Sampling
from dotscli.engine.stream import Piece, Stats
from dotscli.errors import DotsError
from tests.transcript import dots

N_CTX = 512


@pytest.fixture(scope="module")
def q4(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Integer products: on CPUs, several tokens at once get the bits that they get alone."""
    path = tmp_path_factory.mktemp("q4") / "q4.gguf"
    assert dots("quantize", tiny_checkpoint, "-o", path).exit_status == 0
    return path


@pytest.fixture(scope="module")
def engine(q4: Path) -> Iterator[Engine]:
    with Engine.load(q4, EngineOptions(n_ctx=N_CTX, n_threads=1)) as loaded:
        yield loaded


# What is guessed


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_a_guess_is_what_followed_the_last_time(tokens: list[int], most: int) -> None:
    n_wanted, wanted = 0, []
    for n in range(SHORTEST, LONGEST + 1):
        for at in range(n, len(tokens)):
            if tokens[at - n : at] == tokens[-n:]:
                n_wanted, wanted = n, (tokens + tokens[at:] * most)[at : at + most]
    assert Lookup(tokens).find(most) == (n_wanted, wanted)


@given(
    st.dictionaries(st.integers(1, 5), st.floats(0.001, 1.0)), st.floats(0, 1), st.integers(0, 4)
)
def test_no_longer_guess_than_pays(seconds: dict[int, float], rate: float, most: int) -> None:
    costs = Costs(IN_MEMORY)
    for n, taken in seconds.items():
        costs.took(n, taken)
    length = costs.best(rate, most)
    assert 0 <= length <= most
    if 1 not in seconds:
        assert length == 0
        return

    several = {n: taken for n, taken in seconds.items() if n > 1}
    each = [(taken / seconds[1] - 1) / (n - 1) for n, taken in several.items()]
    further = max(0.0, sum(each) / len(each)) if each else IN_MEMORY

    def speed(n: int) -> float:
        known = seconds.get(n + 1, seconds[1] * (1 + further * n))
        return sum(rate**k for k in range(n + 1)) / known

    longest = most if several else min(most, 1)
    best = max([speed(n) for n in range(1, longest + 1)], default=0.0)
    if length:
        assert speed(length) == pytest.approx(best)
        assert speed(length) * seconds[1] >= GAIN * 0.999
    else:
        assert best * seconds[1] <= GAIN * 1.001


def test_a_cost_that_was_measured_long_ago_is_measured_again() -> None:
    costs = Costs(IN_MEMORY)
    costs.took(1, 1.0)
    for n_times in (1, 20):  # what may have been an accident for a shorter time
        for _ in range(n_times):
            costs.took(2, 9.0)
        for _ in range(FORGOTTEN // 8 if n_times == 1 else FORGOTTEN):
            assert costs.best(1.0, 1) == 0
            costs.passed()
        costs.passed()
        assert costs.best(1.0, 1) == 1


def test_guesses_that_never_come_true_are_given_up_without_evaluating_them() -> None:
    costs = Costs(IN_MEMORY)
    costs.took(1, 1.0)
    drafts = Drafts([5, 6, 7] * 2, None, costs, lambda _tokens: True)
    for n in range(200):
        drafts.said([5, 6, 100 + n][n % 3])  # what follows 5, 6 is never what followed
    drafts.said(5)
    drafts.said(6)
    assert drafts.ahead(4) == []
    for _ in range(100):
        for token in (5, 6, 7):
            drafts.said(token)
    assert drafts.ahead(4) == [5]  # a first try is short
    drafts.took(2, 1.2)
    assert drafts.ahead(4) == [5, 6, 7, 5]


@pytest.mark.parametrize(("text", "length"), [("auto", None), ("off", 0), ("0", 0), (" 4 ", 4)])
def test_what_draft_says(text: str, length: int | None) -> None:
    assert draft_length(text) == length


@pytest.mark.parametrize("text", ["", "-1", "5", "1e9", "99999999999999", "on"])
def test_what_draft_can_t_say(text: str) -> None:
    with pytest.raises(DotsError, match="invalid --draft"):
        draft_length(text)


# What becomes of the answer


def answer(engine: Engine, tokens: list[int], sampling: Sampling, **how: object) -> list[Piece]:
    engine.forget()
    return list(engine.generate(tokens, sampling, **how))  # type: ignore[arg-type]


def without_times(pieces: list[Piece]) -> list[tuple[str, int | None, str | None]]:
    return [(piece.text, piece.token, piece.finish_reason) for piece in pieces]


def stats(pieces: list[Piece]) -> Stats:
    found = pieces[-1].stats
    assert found is not None
    return found


@pytest.mark.parametrize("length", [1, 2, MOST, None])
@pytest.mark.parametrize("temp", [0, 0.7])
@pytest.mark.parametrize("n_predict", [1, 37, -1])
def test_the_answer_is_the_same(
    length: int | None, temp: float, n_predict: int, engine: Engine
) -> None:
    tokens = engine.tokenize("hello and the world and hello and the", parse_special=True)
    sampling = Sampling(temp=temp, seed=3, repeat_penalty=1.1 if temp else 1.0)
    plain = answer(engine, tokens, sampling, n_predict=n_predict)
    drafted = answer(engine, tokens, sampling, n_predict=n_predict, draft=length)
    assert without_times(drafted) == without_times(plain)
    assert stats(drafted).completion_tokens == stats(plain).completion_tokens
    assert stats(drafted).accepted_tokens <= stats(drafted).drafted_tokens


def test_guesses_come_true_where_the_answer_repeats_itself(engine: Engine) -> None:
    tokens = engine.tokenize("hello and the world", parse_special=True)
    again = Sampling(temp=0, grammar='root ::= "abcdef" root')
    found = stats(answer(engine, tokens, again, n_predict=300, draft=MOST))
    assert found.completion_tokens == 300
    assert found.accepted_tokens > 200
    assert found.accepted_tokens / found.drafted_tokens > 0.8


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_guessed_the_answer_is_the_same(
    seed: int, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = engine.tokenize("hello and the world", parse_special=True)
    sampling = Sampling(temp=0.9, seed=seed)
    stop = ("zz",)
    plain = answer(engine, tokens, sampling, stop=stop)
    rng = random.Random(seed)
    right = [piece.token for piece in plain if piece.token is not None]

    def ahead(self: Drafts, most: int) -> list[int]:
        """Now and then the right tokens, or some of them, or none."""
        said = len(self._lookup.tokens) - len(tokens)
        true = right[said : said + rng.randrange(9)]
        wrong = [rng.randrange(engine.n_vocab) for _ in range(rng.randrange(9))]
        found = (true + wrong)[: min(most, MOST)]
        self.n_drafted += len(found)
        return found

    monkeypatch.setattr(Drafts, "ahead", ahead)
    drafted = answer(engine, tokens, sampling, stop=stop, draft=MOST)
    assert without_times(drafted) == without_times(plain)
    assert stats(drafted).drafted_tokens > stats(drafted).accepted_tokens


def test_what_was_guessed_wrong_is_not_in_the_cache(engine: Engine) -> None:
    tokens = engine.tokenize("hello and the world", parse_special=True)
    for n_taken in range(1, 30):
        engine.forget()
        pieces = engine.generate(tokens, Sampling(temp=0), draft=MOST)
        taken = [next(pieces).token for _ in range(n_taken)]
        pieces.close()  # type: ignore[attr-defined]
        assert engine._decoder.cached == [*tokens, *taken[:-1]]
        engine._decoder.settle()
        assert engine._decoder.cached == [*tokens, *taken[:-1]]


def test_a_grammar_holds(engine: Engine) -> None:
    tokens = engine.tokenize("hello and the world", parse_special=True)
    sampling = Sampling(temp=0, grammar='root ::= ("ab" | "cd"){60}')
    plain = answer(engine, tokens, sampling)
    assert without_times(answer(engine, tokens, sampling, draft=MOST)) == without_times(plain)
    text = "".join(piece.text for piece in plain)
    assert len(text) == 120


@pytest.mark.parametrize("n_batch", [1, 2, 3])
def test_small_batches_limit_what_is_guessed(n_batch: int, q4: Path) -> None:
    with Engine.load(q4, EngineOptions(n_ctx=N_CTX, n_threads=1, n_batch=n_batch)) as small:
        tokens = small.tokenize("hello and the world", parse_special=True)
        plain = answer(small, tokens, Sampling(temp=0), n_predict=80)
        drafted = answer(small, tokens, Sampling(temp=0), n_predict=80, draft=MOST)
        assert without_times(drafted) == without_times(plain)


def test_who_is_to_repeat_an_answer_guesses_only_where_batches_have_the_same_bits(
    tiny_gguf: Path,
) -> None:
    with Engine.load(tiny_gguf, EngineOptions(n_ctx=N_CTX, n_threads=1)) as loaded:
        tokens = loaded.tokenize("hello and the world " * 6, parse_special=True)
        plain = answer(loaded, tokens, Sampling(temp=0), n_predict=200)
        decided = answer(loaded, tokens, Sampling(temp=0), n_predict=200, draft=None)
        assert without_times(decided) == without_times(plain)
        given = answer(loaded, tokens, Sampling(temp=0), n_predict=200, draft=4)
        assert stats(given).completion_tokens == stats(plain).completion_tokens
        assert loaded.drafting.differs
        assert stats(decided).drafted_tokens == 0
        assert stats(given).drafted_tokens > 0
        free = Sampling(temp=0.1, seed=1, grammar='root ::= "abcdef" root')
        drawn = answer(loaded, tokens, free, n_predict=300, draft=None, repeatable=False)
        assert stats(drawn).drafted_tokens > 0


def test_long_contexts_are_looked_at_again(q4: Path) -> None:
    with Engine.load(q4, EngineOptions(n_ctx=2048, n_threads=1)) as loaded:
        tokens = loaded.tokenize("hello and the world " * 60, parse_special=True)
        plain = answer(loaded, tokens, Sampling(temp=0), n_predict=900)
        drafted = answer(loaded, tokens, Sampling(temp=0), n_predict=900, draft=None)
        assert without_times(drafted) == without_times(plain)
        assert len(loaded.drafting.costs.same_bits) <= 4


# At the prompt


def test_figures_say_what_was_guessed(q4: Path, tiny_gguf: Path) -> None:
    words = ("--grammar", 'root ::= "abcdef" root', "-n", "60", "--temp", "0", "hello")
    plain = dots("prompt", "-m", q4, "--draft", "off", "--json", *words).json
    assert plain["draft"] == {"drafted_tokens": 0, "accepted_tokens": 0}
    drafted = dots("prompt", "-m", q4, "--draft", "3", "--json", *words).json
    assert drafted["text"] == plain["text"]
    assert drafted["draft"]["accepted_tokens"] > 30
    said = dots("prompt", "-m", q4, "--draft", "3", "--stats", *words).stderr
    assert "draft " in said
    assert "other bits" not in said
    assert "other bits" in dots("prompt", "-m", tiny_gguf, "--draft", "3", *words).stderr
    assert "other bits" not in dots("prompt", "-m", tiny_gguf, *words).stderr
    assert dots("prompt", "-m", q4, "--draft", "many", "hello").exit_status == 2


def test_a_conversation_guesses_too(q4: Path) -> None:
    words = ("--grammar", 'root ::= "abcdef" root', "-n", "60", "--temp", "0")
    done = dots("chat", "-m", q4, "--draft", "4", "--stats", *words, stdin="hello\nhello\n")
    assert done.stdout == ("abcdef" * 10 + "\n") * 2
    assert done.stderr.count("draft ") == 2
