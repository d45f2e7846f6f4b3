"""`dots prompt`: one question in, one answer out, and nothing else on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dotscli.commands.question import question
from dotscli.terminal.terminal import Terminal
from tests import tiny
from tests.transcript import command, dots, dots_process, environment, on_a_terminal, plain

SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'


def test_stdout_holds_the_answer_and_stderr_nothing(tiny_gguf: Path) -> None:
    done = dots_process("prompt", "-m", tiny_gguf, "hi", "-n", "8", "--seed", "1", "-q")
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.endswith(b"\n")
    assert b"\x1b[" not in done.stdout
    assert not done.stdout.startswith(b"hi")


def test_the_same_seed_gives_the_same_answer_and_another_another(tiny_gguf: Path) -> None:
    def answer(seed: int) -> str:
        return dots("prompt", "-m", tiny_gguf, "hi", "-n", "12", "--seed", str(seed)).stdout

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(1, 5)}) > 1


def test_the_seed_that_was_drawn_is_reported(tiny_gguf: Path) -> None:
    first = dots("prompt", "-m", tiny_gguf, "hi", "-n", "12", "--json").json
    again = dots(
        "prompt", "-m", tiny_gguf, "hi", "-n", "12", "--json", "--seed", str(first["seed"])
    )
    assert again.json["text"] == first["text"]
    stats = dots("prompt", "-m", tiny_gguf, "hi", "-n", "2", "--seed", "77", "--stats").stderr
    assert "seed 77" in stats


def test_json_has_the_documented_keys_also_at_the_length_limit(tiny_gguf: Path) -> None:
    done = dots("prompt", "-m", tiny_gguf, "hi", "-n", "5", "--json", "-c", "512")
    assert done.exit_status == 0
    assert done.stdout.count("\n") == 1
    value = done.json
    assert set(value) == {
        "text", "finish_reason", "model", "seed", "n_ctx", "usage", "timings", "hot", "ram",
        "draft",
    }  # fmt: skip
    assert value["finish_reason"] == "length"
    assert value["model"] == str(tiny_gguf)
    assert value["n_ctx"] == 512
    assert value["usage"]["completion_tokens"] == 5
    assert set(value["usage"]) == {"prompt_tokens", "completion_tokens"}
    assert set(value["timings"]) == {"load_s", "load", "ttft_s", "prefill_tps", "decode_tps"}
    assert value["hot"] is None


def test_json_and_plain_text_are_the_same_answer(tiny_gguf: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "hi", "-n", "12", "--seed", "3")
    assert dots(*words).stdout.removesuffix("\n") == dots(*words, "--json").json["text"]


def test_a_schema_is_enforced(tiny_gguf: Path) -> None:
    done = dots("prompt", "-m", tiny_gguf, "hi", "-j", SCHEMA, "--temp", "0", "-n", "200")
    assert done.exit_status == 0
    assert isinstance(json.loads(done.stdout)["n"], int)


def test_a_schema_and_a_grammar_from_files(tiny_gguf: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "yes.gbnf"
    schema.write_text(SCHEMA)
    grammar.write_text('root ::= "yes" | "no"')
    answer = dots("prompt", "-m", tiny_gguf, "hi", "-jf", schema, "--temp", "0", "-n", "200")
    assert "n" in json.loads(answer.stdout)
    assert dots("prompt", "-m", tiny_gguf, "hi", "--grammar-file", grammar).stdout in (
        "yes\n", "no\n",
    )  # fmt: skip


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(tiny_gguf: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "hi", "-n", "24", "--temp", "0", "--json")
    text = dots(*words).json["text"]
    stop = text[3:5]
    done = dots(*words, "--stop", stop).json
    assert done["text"] == text[: text.index(stop)]
    assert done["finish_reason"] == "stop"


def test_a_system_prompt_changes_what_the_model_reads(tiny_gguf: Path, tmp_path: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "hi", "-n", "1", "--json")
    file = tmp_path / "system.txt"
    file.write_text("Be brief.\n")
    plain = dots(*words).json["usage"]["prompt_tokens"]
    given = dots(*words, "-s", "Be brief.").json["usage"]["prompt_tokens"]
    assert given > plain
    assert dots(*words, "--system-file", file).json["usage"]["prompt_tokens"] == given


def test_without_the_template_the_text_is_all_there_is(tiny_gguf: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "-n", "1", "--json")
    with_tags = dots(*words, "hello").json["usage"]["prompt_tokens"]
    assert dots(*words, "--no-template", "hello").json["usage"]["prompt_tokens"] == 1
    assert with_tags == 4
    raw = dots(*words, "--no-template", "<|userprompt|>hello<|endofuserprompt|><|response|>")
    assert raw.json["usage"]["prompt_tokens"] == with_tags


def test_a_tag_in_the_question_is_text(tiny_gguf: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "-n", "1", "--json")
    done = dots(*words, "hello<|endofuserprompt|>")
    assert done.json["usage"]["prompt_tokens"] > 10


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "attribute '__class__' of 'str' object"),
        ("{% include '/etc/passwd' %}", "it reads other files"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "runs"),
        ("{{ 'a' * 10**10 }}", "it builds more than"),
        ("{% if %}", "malformed"),
        ("{{ raise_exception('no tools here') }}", "no tools here"),
    ],
)
def test_a_hostile_template_in_a_model_ends_in_one_line(
    template: str, message: str, tmp_path: Path
) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "checkpoint", n_layers=2)
    (checkpoint / "chat_template.jinja").write_text(template)
    model = tmp_path / "hostile.gguf"
    assert dots("quantize", checkpoint, "-o", model, "--type", "f32").exit_status == 0
    done = dots("prompt", "-m", model, "hi")
    assert done.exit_status == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: the chat template ")
    assert message in done.stderr
    assert "--no-template" in done.stderr
    assert dots("prompt", "-m", model, "hi", "--no-template", "-n", "1").exit_status == 0


def test_files_come_first_then_stdin_then_the_argument(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("one\n")
    b.write_text("two")
    terminal = make_terminal("three\n")
    assert question(terminal, "four", [a, b]) == (
        f"--- File: {a} ---\none\n\n--- File: {b} ---\ntwo\n\nthree\n\nfour"
    )


def test_stdin_can_be_one_of_the_files() -> None:
    text = question(make_terminal("piped\n"), "what is this?", [Path("-")])
    assert text == "--- File: stdin ---\npiped\n\nwhat is this?"


def make_terminal(stdin: str) -> Terminal:
    import io

    return Terminal(io.StringIO(stdin), io.StringIO(), io.StringIO(), environ={})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "error: no question given"),
        (("hi", "--temp", "warm"), "error: Invalid value for '--temp'"),
        (("hi", "--temp", "nan"), "error: --temp nan is out of range"),
        (("hi", "--top-p", "2"), "error: --top-p 2 is out of range"),
        (("hi", "-ngl", "many"), "error: invalid --n-gpu-layers 'many'"),
        (("hi", "-ctk", "q3_k"), "error: invalid --cache-type-k 'q3_k'"),
        (("hi", "-s", "x", "--system-file", "y"), "error: --system and --system-file can't"),
        (("hi", "-j", "{}", "--grammar", "x"), "error: --json-schema and --grammar can't"),
        (("hi", "--no-template", "-s", "x"), "error: --no-template and --system can't"),
        (("hi", "--color", "red"), "error: invalid --color 'red'"),
        (("What", "is", "dots?"), "error: Got unexpected extra arg"),
        (("hi", "--nonsense"), "error: No such option: --nonsense"),
    ],
)
def test_wrong_usage_is_exit_status_2(words: tuple[str, ...], message: str) -> None:
    done = dots("prompt", *words)
    assert done.exit_status == 2
    assert done.stderr.startswith(message)
    assert done.stdout == ""
    assert "hint: " in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "no/such.gguf"), "error: model no/such.gguf not found"),
        (("-f", "no-such.txt"), "error: no-such.txt can't be read"),
        (("-j", "{"), "error: the JSON schema"),
        (("--grammar", "root ::= ("), "error: "),
    ],
)
def test_what_can_not_be_done_is_exit_status_1(
    words: tuple[str, ...], message: str, tiny_gguf: Path
) -> None:
    model = () if "-m" in words else ("-m", tiny_gguf)
    done = dots("prompt", "hi", *model, *words)
    assert done.exit_status == 1
    assert done.stderr.startswith(message)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_prompt_that_does_not_fit_is_said_with_both_numbers(tiny_gguf: Path) -> None:
    done = dots("prompt", "-m", tiny_gguf, "-c", "256", stdin="hello world " * 500)
    assert done.exit_status == 1
    assert "tokens, but the context holds 256" in done.stderr
    assert "--ctx-size" in done.stderr


def test_an_answer_that_fills_the_context_says_so(tiny_gguf: Path) -> None:
    grammar = 'root ::= "a" root'
    done = dots("prompt", "-m", tiny_gguf, "hi", "-c", "256", "--grammar", grammar, "--json")
    assert done.exit_status == 0
    assert done.json["finish_reason"] == "context"
    assert "the context is full" in done.stderr


def test_flag_environment_config_metadata_default(tiny_gguf: Path, tmp_path: Path) -> None:
    config = tmp_path / "dots" / "config.toml"
    config.parent.mkdir()
    config.write_text("ctx-size = 512\nmax-tokens = 3\n[chat]\nctx-size = 1024\n")
    places = {"XDG_CONFIG_HOME": str(tmp_path)}
    words = ("prompt", "-m", tiny_gguf, "hi", "--json")
    done = dots(*words, environ=places).json
    assert (done["n_ctx"], done["usage"]["completion_tokens"]) == (512, 3)
    run = dots_process(*words, XDG_CONFIG_HOME=str(tmp_path), DOTS_CTX_SIZE="768")
    assert json.loads(run.stdout)["n_ctx"] == 768
    assert dots(*words, "-c", "256", environ=places).json["n_ctx"] == 256
    assert dots(*words, "-n", "1").json["n_ctx"] == 2048


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", "nonsense is unknown"),
        ("[nonsense]\na = 1", "[nonsense] is unknown"),
        ("[prompt]\nnonsense = 1", "nonsense in [prompt] is unknown"),
        ("temp = ", "Invalid value"),
        ("a." * 30_000 + "b = 1", "a key has more than 4 parts"),
        ("'a' . " * 9_000 + "b = 1", "a key has more than 4 parts"),
        (f"{'a' * 100}." * 3 + "b = 1", "aaa... is unknown"),
        ("a" * 60_000 + " = 1", "aaa... is unknown"),
    ],
    ids=lambda text: text[:20],
)
def test_a_wrong_config_is_named(text: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "dots" / "config.toml"
    config.parent.mkdir()
    config.write_text(text)
    done = dots("prompt", "hi", environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert done.exit_status == 1
    assert done.stderr.startswith(f"error: {config}: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    "stdin", [b"", None, b"hello world\n" * 5, "漢字 😀\n".encode(), b"caf\xe9"]
)
def test_any_stdin_ends(stdin: bytes | None, tiny_gguf: Path) -> None:
    done = dots_process("prompt", "-m", tiny_gguf, "hi", "-n", "2", stdin=stdin)
    assert done.returncode == 0


def test_a_megabyte_of_stdin_is_too_much_and_said_so(tiny_gguf: Path) -> None:
    done = dots_process("prompt", "-m", tiny_gguf, "hi", stdin=b"hello world\n" * 90_000)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 2
    assert b"the context holds" in done.stderr


def test_closed_streams_do_no_harm(tiny_gguf: Path) -> None:
    line = " ".join(command("prompt", "-m", tiny_gguf, "hi", "-n", "2", "-q"))
    for redirection in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{line} {redirection}"],
            env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""


@pytest.mark.parametrize("words", [["prompt", "hi", "-n", "300"], ["doctor"]])
def test_a_reader_that_has_enough_is_no_error(words: list[str], tiny_gguf: Path) -> None:
    model = ["-m", str(tiny_gguf)] if words[0] == "prompt" else []
    line = " ".join(f"'{word}'" for word in command(*words, *model))
    done = subprocess.run(
        ["/bin/sh", "-c", f"{line} -q | head -c 1"],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == b""
    assert len(done.stdout) == 1


@pytest.mark.parametrize(
    "changes", [{"COLUMNS": "20"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, {"LC_ALL": "C"},
                {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)  # fmt: skip
def test_any_surroundings(changes: dict[str, str], tiny_gguf: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "漢字", "-n", "4", "--seed", "1")
    done = dots_process(*words, "--stats", **changes)
    assert done.returncode == 0
    assert done.stdout == dots_process(*words).stdout
    assert " · " in done.stderr.decode("utf-8")


LONG = ("-n", "16000", "-c", "16384", "--grammar", 'root ::= "a" root')


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_has_come(number: int, status: int, tiny_gguf: Path) -> None:
    process = subprocess.Popen(
        command("prompt", "-m", tiny_gguf, "hi", *LONG),
        env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert first == b"a"
    assert b"Traceback" not in err
    if number == signal.SIGINT:
        assert out.strip(b"a") == b"\n"


def test_an_interrupt_while_waiting_for_stdin(tiny_gguf: Path) -> None:
    process = subprocess.Popen(
        command("prompt", "-m", tiny_gguf, "hi"),
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"waiting for the end of stdin")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_an_interrupt_while_the_prompt_is_read(tiny_gguf: Path) -> None:
    process = subprocess.Popen(
        command("prompt", "-m", tiny_gguf, "-c", "16384", "-b", "1"),
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"hello and the world " * 1600)
    process.stdin.close()
    while not (line := process.stderr.readline()).startswith(b"reading the prompt"):
        assert line
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stdout is not None
    assert process.stdout.read() == b""
    assert b"Traceback" not in process.stderr.read()


def test_a_full_disk_under_the_answer_is_said(tiny_gguf: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("prompt", "-m", tiny_gguf, "hi", "-n", "3", "-q"),
            env=environment(), stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"error: the output can't be written: No space left on device\n"


TRICKY = "a[i] [/] [bold \t" + "x" * 300 + "漢字😀\x1b[2J\x1b]0;t\x07\u009b2J\u202eabc\r\n"


def tricky_grammar() -> str:
    """A grammar whose only text is TRICKY."""
    escaped = "".join(
        char if char.isascii() and char.isprintable() and char not in '"\\'
        else f"\\U{ord(char):08x}"
        for char in TRICKY
    )  # fmt: skip
    return f'root ::= "{escaped}"'


def test_any_text_comes_through_a_pipe_byte_for_byte(tiny_gguf: Path) -> None:
    done = dots_process("prompt", "-m", tiny_gguf, "hi", "--grammar", tricky_grammar())
    assert done.stdout.decode("utf-8") == TRICKY


def test_no_text_moves_a_terminal(tiny_gguf: Path) -> None:
    words = ("prompt", "-m", tiny_gguf, "hi", "--no-stats", "--grammar", tricky_grammar())
    with on_a_terminal(*words, NO_COLOR="1", columns=400) as screen:
        assert screen.wait() == 0
        assert "\x1b" not in screen.seen
        assert "\x9b" not in screen.seen
        assert "\u202e" not in screen.seen
        assert "漢字😀␛[2J␛]0;t␇�2Jabc" in screen.seen


def test_interrupted_json_is_still_json(tiny_gguf: Path) -> None:
    with on_a_terminal("prompt", "-m", tiny_gguf, "hi", "--json", *LONG) as screen:
        screen.wait_for("of the training")  # the context is made now, then it answers
        time.sleep(2)
        screen.type("\x03")
        assert screen.wait() == 130
        text = plain(screen.seen)
        value = json.loads(text[text.index("{") : text.rindex("}") + 1])
        assert value["finish_reason"] == "interrupted"
        assert value["usage"]["completion_tokens"] == len(value["text"])


def test_on_a_terminal_there_are_figures_and_no_live_control_sequences(tiny_gguf: Path) -> None:
    grammar = r'root ::= "a[i] [/] [bold " "\x1b" "[2J\n"'
    with on_a_terminal("prompt", "-m", tiny_gguf, "hi", "--grammar", grammar) as screen:
        assert screen.wait() == 0
        assert "a[i] [/] [bold ␛[2J" in screen.seen
        assert "\x1b[2J" not in screen.seen
        assert "tok · " in screen.seen
        assert "seed " in screen.seen


def test_the_question_of_a_terminal_is_the_argument(tiny_gguf: Path) -> None:
    with on_a_terminal("prompt", "-m", tiny_gguf) as screen:
        assert screen.wait() == 2
        assert "no question given" in screen.seen
