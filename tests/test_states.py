"""What a context held comes back from a file: to the bit, and never something else."""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from dotscli.engine import Engine, EngineOptions, state_file, state_store
from dotscli.engine import states as states_module
from dotscli.engine.sampling import Sampling
from dotscli.engine.state_file import NewState, checked_state, read_info
from dotscli.engine.state_store import StateStore, common
from dotscli.engine.stream import Piece
from dotscli.errors import DotsError
from tests.transcript import dots, on_a_terminal

GREEDY = Sampling(temp=0)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces in a small state, and a disk so fast that every state is worth keeping."""
    monkeypatch.setattr(state_file, "PIECE", 1 << 16)
    monkeypatch.setattr(states_module, "OVERHEAD_S", 0.0)
    monkeypatch.setattr(states_module, "RATE", 1e15)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "states"


def engine(path: Path, folder: Path | None, warnings: list[str], **how: object) -> Engine:
    made = Engine.load(path, EngineOptions(n_ctx=1024, n_threads=1, **how))  # type: ignore[arg-type]
    if folder is not None:
        made.keep_states(folder, warnings.append)
    return made


def answer(loaded: Engine, prompt: list[int], n: int = 8) -> list[int | None]:
    pieces: list[Piece] = list(loaded.generate(prompt, GREEDY, n_predict=n))
    loaded.keep_state()
    return [piece.token for piece in pieces]


def prompts(loaded: Engine, n_tokens: int = 300) -> tuple[list[int], list[int]]:
    rng = random.Random(3)
    first = [rng.randrange(200) for _ in range(n_tokens)]
    return first, [rng.randrange(200) for _ in range(40)]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "f32"])
def test_a_conversation_goes_on_to_the_bit(
    kind: str, tiny_gguf: Path, folder: Path, warnings: list[str]
) -> None:
    how = {"cache_type_k": kind, "cache_type_v": kind}
    with engine(tiny_gguf, folder, warnings, **how) as loaded:
        first, more = prompts(loaded)
        said = answer(loaded, first)
        assert loaded.states is not None
        loaded.states.close()
        kept = shutil.copytree(folder, folder.parent / "kept")  # the next takes its place
        following = [*first, *(t for t in said if t is not None), *more]
        expected = answer(loaded, following)
        logits = last_logits(loaded)
        assert loaded.stats.reused_tokens > 300
    with engine(tiny_gguf, kept, warnings, **how) as loaded:
        found = answer(loaded, following)
        assert loaded.stats.reused_tokens > 300
        assert found == expected
        np.testing.assert_array_equal(last_logits(loaded), logits)
    assert warnings == []


def last_logits(loaded: Engine) -> np.ndarray:
    api, context = loaded._decoder._api, loaded._decoder.context
    return np.ctypeslib.as_array(
        api.llama_get_logits_ith(context, -1), shape=(loaded.n_vocab,)
    ).copy()


def test_another_conversation_with_the_same_beginning(
    tiny_gguf: Path, folder: Path, warnings: list[str]
) -> None:
    with engine(tiny_gguf, folder, warnings) as loaded:
        first, more = prompts(loaded)
        answer(loaded, first)
    with engine(tiny_gguf, None, warnings) as loaded:
        expected = answer(loaded, first[:200] + more)
    with engine(tiny_gguf, folder, warnings) as loaded:
        assert answer(loaded, first[:200] + more) == expected
        assert loaded.stats.reused_tokens == 200


def test_other_settings_and_other_models_have_states_of_their_own(
    tiny_gguf: Path, folder: Path, warnings: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes() + b"\0" * 32)
    with engine(tiny_gguf, folder, warnings) as loaded:
        first, _ = prompts(loaded)
        answer(loaded, first)
    for path, how in ((other, {}), (tiny_gguf, {"cache_type_k": "q8_0"})):
        with engine(path, folder, warnings, **how) as loaded:
            answer(loaded, first)
            assert loaded.stats.reused_tokens == 0
    assert len(list(folder.glob("*"))) == 3
    assert warnings == []


def test_a_context_that_is_too_short_reads_again(
    tiny_gguf: Path, folder: Path, warnings: list[str]
) -> None:
    with engine(tiny_gguf, folder, warnings) as loaded:
        first, _ = prompts(loaded, 600)
        answer(loaded, first)
    with Engine.load(tiny_gguf, EngineOptions(n_ctx=512, n_threads=1)) as loaded:
        loaded.keep_states(folder, warnings.append)
        expected = answer(loaded, first[:400])
        assert loaded.stats.reused_tokens == 0
    with engine(tiny_gguf, None, warnings) as loaded:
        assert answer(loaded, first[:400]) == expected


@pytest.mark.parametrize("where", [0.0, 0.001, 0.3, 0.6, 0.95, 1.0])
def test_damage_is_said_and_read_again(
    where: float, tiny_gguf: Path, folder: Path, warnings: list[str]
) -> None:
    with engine(tiny_gguf, folder, warnings) as loaded:
        first, _ = prompts(loaded)
        expected = answer(loaded, first)
    [path] = folder.glob("*")
    data = bytearray(path.read_bytes())
    data[min(int(where * len(data)), len(data) - 1)] ^= 1
    path.write_bytes(data)
    with engine(tiny_gguf, folder, warnings) as loaded:
        assert answer(loaded, first) == expected
        assert loaded.stats.reused_tokens == 0
    assert len(warnings) == 1
    assert "is damaged" in warnings[0]


def test_no_damage_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "x.state"
    new = NewState(path, "it", list(range(50)), 200_000, 1.0)
    new.fill(lambda to: to.__setitem__(slice(None), os.urandom(200_000)))
    new.finish()
    data = path.read_bytes()
    rng = random.Random(5)
    whole = read_info(path)
    used = {*range(whole.offset - 4096 + 300, whole.offset)}  # zeros between say nothing
    for _ in range(150):
        at, cut = rng.randrange(len(data)), rng.random() < 0.3
        if at in used and not cut:
            continue
        changed = bytearray(data[:at] if cut else data)
        if not cut:
            changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DotsError), checked_state(read_info(path)):
            pass
    path.write_bytes(data)
    with checked_state(read_info(path)) as state:
        assert bytes(state) == data[whole.offset : whole.offset + 200_000]


@pytest.mark.parametrize(
    "header",
    [b"{}", b"[]", b'{"identity": 1, "n_tokens": 1, "nbytes": 1, "prefill_s": 1}',
     b'{"identity": "", "n_tokens": -1, "nbytes": 1, "prefill_s": 1}',
     b'{"identity": "", "n_tokens": 99999999999, "nbytes": 1, "prefill_s": 1}',
     b'{"identity": "", "n_tokens": 1, "nbytes": 1e99, "prefill_s": 1}',
     b'{"identity": "", "n_tokens": 1, "nbytes": 1, "prefill_s": "1"}'],
)  # fmt: skip
def test_a_header_that_lies_is_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.state"
    path.write_bytes(state_file._HEAD.pack(state_file.MAGIC, len(header)) + header + bytes(10_000))
    with pytest.raises(DotsError, match="is damaged"):
        read_info(path)


def test_nobody_else_may_read_them_and_none_is_half(
    tiny_gguf: Path, folder: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(tiny_gguf, folder, warnings) as loaded:
        first, _ = prompts(loaded)
        answer(loaded, first)
    [path] = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def full(descriptor: int, offset: int, nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with engine(tiny_gguf, folder, warnings) as loaded:
        answer(loaded, [5, 6, 7] * 90)
    assert list(folder.iterdir()) == [path]
    assert "No space left" in warnings[0]


def store(folder: Path) -> StateStore:
    return StateStore(folder, "it", lambda text: None)


def made(folder: Path, tokens: list[int], nbytes: int = 1000) -> Path:
    path = store(folder).path(tokens)
    new = NewState(path, "it", tokens, nbytes, 1.0)
    new.fill(lambda to: None)
    new.finish()
    return path


def test_the_longest_beginning_is_found(folder: Path) -> None:
    for tokens in ([1, 2, 3], [1, 2, 3, 4, 5], [9, 9]):
        made(folder, tokens)
    info, n = store(folder).best([1, 2, 3, 4, 7])
    assert info is not None
    assert (list(info.tokens), n) == ([1, 2, 3, 4, 5], 4)
    assert store(folder).best([7]) == (None, 0)
    assert StateStore(folder, "other", print).best([1, 2]) == (None, 0)


def test_a_longer_state_takes_the_place_of_what_it_holds(folder: Path) -> None:
    short, half, other = (
        made(folder, [1, 2]),
        made(folder, [1, 2, 3, 4]),
        made(folder, [1, 9, 9, 9]),
    )
    tokens = [1, 2, 3, 4, 5]
    new = made(folder, tokens)
    store(folder).succeed(new, tokens)
    assert set(folder.iterdir()) == {short, other, new}
    assert not half.exists()


def test_the_longest_unused_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [made(folder, [n, n]) for n in range(4)]
    size = paths[0].stat().st_size
    for n, path in enumerate(paths):
        os.utime(path, (n, n))
    one = store(folder)
    info, _ = one.best([0, 0])
    assert info is not None
    one.used(info)
    monkeypatch.setattr(state_store, "MOST_NBYTES", 4 * size)
    assert one.make_room(size)
    assert set(folder.iterdir()) == {paths[0], paths[2], paths[3]}
    assert not one.make_room(5 * size)
    assert len(list(folder.iterdir())) == 3


def test_what_two_lists_begin_with() -> None:
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([], [1]) == common([2], [1]) == 0


def test_a_state_that_costs_more_than_reading_is_not_kept(
    tiny_gguf: Path, folder: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "RATE", 1.0)
    with engine(tiny_gguf, folder, warnings) as loaded:
        first, _ = prompts(loaded)
        answer(loaded, first)
    assert not folder.exists()


def test_a_chat_that_goes_on_reads_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the pieces are those of other processes
    places = {"XDG_STATE_HOME": str(tmp_path)}
    question = "Tell me what dots is. " * 60
    words = ("chat", "-n", "4", "-c", "4096")
    with on_a_terminal(*words, **places) as screen:
        screen.wait_for(">>>")
        screen.type(question + "\r")
        screen.wait_for(" tok ")
        screen.wait_for(">>>")
        screen.type("/exit\r")
        assert screen.wait(60) == 0
    listed = dots("sessions", "cache", "--json", environ=places).json
    assert len(listed["states"]) == 1
    with on_a_terminal(*words, "--continue", columns=160, **places) as screen:
        screen.wait_for(">>>")
        screen.type("And?\r")
        screen.wait_for("reused)")
        screen.wait_for(">>>")
        screen.type("/exit\r")
        assert screen.wait(60) == 0
    text = dots("sessions", "cache", environ=places).stdout
    assert "to read again" in text


def test_a_prompt_goes_on_from_a_kept_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    places = {"XDG_STATE_HOME": str(tmp_path)}
    (tmp_path / "long.txt").write_text("Tell me what dots is. " * 120)
    words = ("prompt", "-f", tmp_path / "long.txt", "-n", "4", "-c", "4096", "--stats", "-t", "1",
             "--temp", "0")  # fmt: skip
    nothing = dots(*words, "What?", environ=places)
    assert not (tmp_path / "dots/states").exists()
    first = dots(*words, "What?", "--save", environ=places)
    assert "the context is kept in" in first.stderr
    assert first.stdout == nothing.stdout
    then = dots(*words, "Why?", "--save", environ=places)
    reused = re.search(r"\(([\d,]+) reused\)", then.stderr)
    assert reused is not None
    assert int(reused[1].replace(",", "")) > 300
    assert "reused" not in dots(*words, "Why?", environ=places).stderr
