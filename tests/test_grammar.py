"""Answers that follow a grammar or a JSON schema, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dotscli.engine import Engine, check_grammar, json_schema_grammar
from dotscli.engine import grammar as grammars
from dotscli.engine.sampling import Sampling
from dotscli.errors import DotsError
from tests import gguf_maker
from tests.engine_kit import ids, load, run, text


def test_repetitions_inside_of_literals_are_no_repetitions(engine: Engine) -> None:
    grammar = 'root ::= "a**{9,1}((((" [*+?]{2} # no (( and **\n'
    answer = text(run(engine, sampling=Sampling(temp=0.0, grammar=grammar), n_predict=30))
    assert answer[:-2] == "a**{9,1}(((("
    assert set(answer[-2:]) <= set("*+?")


@pytest.mark.parametrize("temp", [0.0, 5.0])
def test_an_answer_follows_the_grammar(engine: Engine, temp: float) -> None:
    sampling = Sampling(temp=temp, seed=1, grammar='root ::= "yes" | "no" | [0-9]{3}')
    pieces = run(engine, sampling=sampling)
    assert pieces[-1].finish_reason == "stop"
    assert text(pieces) in ("yes", "no") or len(text(pieces)) == 3


def test_json_of_a_schema_parses(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
    }
    grammar = json_schema_grammar(json.dumps(schema))
    for seed in range(3):
        sampling = Sampling(temp=1.5, seed=seed, grammar=grammar)
        pieces = run(engine, sampling=sampling, n_predict=200)
        assert pieces[-1].finish_reason == "stop", text(pieces)
        answer = json.loads(text(pieces))
        assert set(answer) == {"name", "age", "tags"}
        assert isinstance(answer["age"], int)
        assert set(answer["tags"]) <= {"a", "b"}


def test_free_text_in_a_grammar_lets_no_control_token_in(engine: Engine) -> None:
    sampling = Sampling(temp=50.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, grammar="root ::= .*")
    chosen = ids(run(engine, sampling=sampling, n_predict=300))
    control = {
        engine.tokenize(name, parse_special=True)[0] for name in ("<|system|>", "<|response|>")
    }
    assert len(chosen) > 20
    assert not control & set(chosen)


@pytest.mark.parametrize(
    "grammar",
    [
        "this is no grammar",
        "root ::= undefined",
        'other ::= "a"',
        "root ::= root",
        'root ::= "a"{1,99999999999999999999}',
        "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
        'root ::= "a\0"',
        'root ::= "a"{21,4}',
        'root ::= "a"{1,5000}',
        "root ::= [a-z]* {2000}",
        'root ::= <[5]> !<[6]> "a"',
        'root ::= ("a"+)?+',
        "\n".join(f"r{i} ::= r{i + 1}" for i in range(9999)),
        'root ::= "',
        "root ::= [a-",
        "",
        " \n# nothing\n",
        'root ::= "\ud800"',
        'root ::= "' + "a" * 2**20 + '"',
    ],
)
def test_a_bad_grammar_is_an_error_and_no_crash(engine: Engine, grammar: str) -> None:
    with pytest.raises(DotsError, match="grammar"):
        engine.generate([1], Sampling(grammar=grammar))


EXPONENTIAL = "\n".join(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(60))
SCHEMA_OF = '{{"type": "string", "pattern": "^{}$"}}'


@pytest.mark.parametrize(
    "grammar",
    [
        EXPONENTIAL + '\nr60 ::= "a"\nroot ::= r0',
        'root ::= b root "x" | "y"\nb ::= c c\nc ::= "z" |',  # left recursion that isn't noticed
        "root ::= " + "[" * 1_000_000,
        "root ::= " + '("a"? "b"?){40} ' * 1000,
    ],
    ids=["alternatives", "recursion", "brackets", "optional"],
)
def test_a_grammar_that_hangs_its_parser_is_refused(
    grammar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_grammar('root ::= "a"')
    monkeypatch.setattr(grammars, "MAX_SECONDS", 0.5)
    with pytest.raises(DotsError, match="the grammar can't be used: ") as caught:
        check_grammar(grammar)
    assert caught.value.hint
    check_grammar('root ::= "a"')


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA_OF.format("(a?){2000}(b?){2000}"),
        SCHEMA_OF.format("(a*){2000}" * 4),
        '{"type": "array", "items": {"type": "string"}, "minItems": 1000000000}',
        json.dumps({"enum": list(range(10**5))}),
        '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}',
        SCHEMA_OF.format("(" * 3000 + "a" + ")" * 3000),
        '{"a": ' * 100_000 + "1" + "}" * 100_000,
        '{"type": "integer", "minimum": ' + "9" * 5000 + "}",
        SCHEMA_OF.format("\\\\u0000"),
        " " * (grammars.MAX_TEXT + 1),
        '{"const": "\ud800"}',
    ],
    ids=lambda text: text[:60],
)
def test_a_schema_gives_a_grammar_or_one_line_in_time(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_grammar('root ::= "a"')
    monkeypatch.setattr(grammars, "MAX_SECONDS", 1.0)
    try:
        assert "root ::=" in json_schema_grammar(schema)
    except DotsError as error:
        assert len(error.message) < 300


def test_a_grammar_that_explodes_while_sampling_ends_the_answer_and_not_the_process(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(engine.generate([1], Sampling(grammar='root ::= "a"')))
    monkeypatch.setattr(grammars, "MAX_SECONDS", 0.5)
    # every character triples the ways in which the text can have come about
    sampling = Sampling(grammar='root ::= "a" root "b" | "a" root "c" | "a" root "d"', seed=1)
    with pytest.raises(DotsError, match="the grammar can't be used: "):
        run(engine, sampling=sampling, n_predict=60)
    monkeypatch.undo()
    assert text(run(engine, sampling=Sampling(grammar='root ::= "yes"', seed=1))) == "yes"


def test_llama_cpp_prints_nothing_about_a_bad_grammar(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DotsError, match="Undefined rule identifier 'nothing'"):
        engine.generate([1], Sampling(grammar="root ::= nothing"))
    assert capfd.readouterr() == ("", "")


def test_a_grammar_the_vocabulary_cannot_write_is_an_error(tmp_path: Path) -> None:
    made = gguf_maker.dots1()
    tokens = list(made.keys["tokenizer.ggml.tokens"][1])  # type: ignore[call-overload]
    tokens[ord("z")] = "zzz"
    made.set("tokenizer.ggml.tokens", "array:string", tokens)
    with load(made.write(tmp_path / "m.gguf"), n_ctx=256) as engine:
        sampling = Sampling(temp=0.0, grammar='root ::= "z" "a"')
        with pytest.raises(DotsError, match="none of the model's tokens"):
            run(engine, sampling=sampling)


@pytest.mark.parametrize(
    "schema",
    [
        "no json",
        "[]",
        '{"type": "nonsense"}',
        '{"$ref": "https://example.org/schema.json"}',
        '{"$ref": "#/nowhere"}',
        '{"type": "string", "maxLength": 1000000000}',
        '{"type": "array", "items": {"type": "string"}, "minItems": -1}',
        '{"type": "string", "pattern": "(?=x)"}',
        '{"type": "string", "pattern": "^a{99999999999}$"}',
        '{"type": "object", "properties": 7}',
        '{"anyOf": ' * 500 + "{}" + "}" * 500,
    ],
)
def test_a_bad_schema_is_an_error_and_no_download(schema: str) -> None:
    with pytest.raises(DotsError, match=r"schema|grammar"):
        json_schema_grammar(schema)


KEYS = st.sampled_from(
    ["type", "properties", "items", "required", "enum", "const", "anyOf", "allOf", "$ref",
     "pattern", "additionalProperties", "format", "minItems", "maxItems", "minLength", "maxLength"]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5000),
    st.sampled_from(
        ["object", "array", "string", "integer", "#/a", "#", "^a{2,3}$", "^($", "date"]
    ),
    st.text(max_size=4),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=15,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
def test_any_schema_gives_a_grammar_or_an_error(schema: dict[str, object]) -> None:
    try:
        assert "root ::=" in json_schema_grammar(json.dumps(schema))
    except DotsError as error:
        assert error.message


def test_a_grammar_that_is_slow_at_every_token_has_one_budget_for_all(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no token takes the time that one token may take, and all of them together would take minutes
    rules = "".join(f"r{n} ::= r{n + 1}*\n" for n in range(1500))
    monkeypatch.setattr(grammars, "MAX_SECONDS", 2.0)
    sampling = Sampling(grammar=f"root ::= r0\n{rules}r1500 ::= [a-z]", seed=1)
    began = perf_counter()
    with pytest.raises(DotsError, match="the grammar can't be used: "):
        run(engine, sampling=sampling, n_predict=200)
    assert perf_counter() - began < 15
