"""Bytes of tokens to text: characters over borders, stop strings over borders, nothing lost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.engine.stream import Stats, TextStream
from dotscli.errors import DotsError


def run(parts: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, bool]:
    stream = TextStream(stop)
    text = "".join(stream.feed(part) for part in parts) + stream.flush()
    return text, stream.stopped


def expected(data: bytes, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The definition, character by character: the first stop string to be complete ends it."""
    text = ""
    for character in data.decode("utf-8", "replace"):
        text += character
        ends = [s for s in stop if text.endswith(s)]
        if ends:
            return text[: -max(map(len, ends))], True
    return text, False


def cut(data: bytes, borders: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(b % (len(data) + 1) for b in borders)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


texts = st.one_of(
    st.binary(max_size=30),
    st.text(alphabet="ab<|>é你🙂\n", max_size=30).map(str.encode),
)
stops = st.lists(st.text(alphabet="ab<|>é你", min_size=1, max_size=4), max_size=4).map(tuple)


@given(texts, st.lists(st.integers(0, 100), max_size=8), stops)
def test_any_cut_of_the_bytes_gives_the_same_text(
    data: bytes, borders: list[int], stop: tuple[str, ...]
) -> None:
    assert run(cut(data, borders), stop) == expected(data, stop)


@given(texts, stops)
def test_no_more_is_held_back_than_could_become_a_stop_string(
    data: bytes, stop: tuple[str, ...]
) -> None:
    plain, stream = TextStream(), TextStream(stop)
    came = out = ""
    for byte in data:
        came += plain.feed(bytes([byte]))
        out += stream.feed(bytes([byte]))
        if stream.stopped:
            break
        held = came[len(out) :]
        assert not held or any(s != held and s.startswith(held) for s in stop)


def test_a_character_comes_when_its_last_byte_has_come() -> None:
    stream = TextStream()
    assert [stream.feed(bytes([b])) for b in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]


def test_half_a_character_at_the_end_is_shown_as_a_replacement() -> None:
    assert run([b"a\xf0\x9f"]) == ("a\N{REPLACEMENT CHARACTER}", False)


def test_invalid_bytes_do_not_swallow_what_follows() -> None:
    assert run([b"\xff", b"\xe4\xbd", b"ok"])[0] == b"\xff\xe4\xbdok".decode("utf-8", "replace")


def test_a_stop_string_over_three_tokens_leaves_no_trace() -> None:
    stream = TextStream(("<end>",))
    assert [stream.feed(part) for part in (b"Hi <", b"en", b"d> never seen")] == ["Hi ", "", ""]
    assert stream.stopped
    assert stream.feed(b"more") == stream.flush() == ""


def test_what_only_began_like_a_stop_string_is_given_back() -> None:
    stream = TextStream(("<end>",))
    assert [stream.feed(b"a <en"), stream.feed(b"try>"), stream.flush()] == ["a ", "<entry>", ""]
    assert not stream.stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(DotsError, match="stop string"):
        TextStream(("",))


def test_rates_count_what_was_evaluated() -> None:
    stats = Stats(
        prompt_tokens=110, reused_tokens=10, completion_tokens=21, prefill_s=2.0, decode_s=4.0
    )
    assert (stats.prefill_tps, stats.decode_tps) == (50.0, 5.0)
    assert (Stats().prefill_tps, Stats(completion_tokens=1, decode_s=1.0).decode_tps) == (0.0, 0.0)
