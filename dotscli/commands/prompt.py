"""`dots prompt`: one question, one answer, and out.

The question is put together from files, stdin and the argument, in this order: the question
stands next to its answer, and the same files asked about twice begin with the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from dotscli.commands.chat_session import WRITING, keep_states
from dotscli.commands.model import open_engine, resolve
from dotscli.commands.question import asked_with, with_schema
from dotscli.commands.settings import (
    engine_options,
    grammar_for,
    sampling_for,
    stop_strings,
    system_prompt,
)
from dotscli.conversation.answer import (
    OTHER_BITS,
    Answer,
    answer_json,
    answer_writer,
    stats_line,
    status_line,
    with_prefill,
)
from dotscli.conversation.code_block import first_code_block
from dotscli.conversation.messages import Message, OnPrefill, encode
from dotscli.conversation.prompt_template import read_template
from dotscli.engine.draft import draft_length
from dotscli.engine.sampling import check_n_predict
from dotscli.engine.stream import Piece
from dotscli.errors import DotsError, ExitStatus, usage
from dotscli.folders import heat_folder, templates_folder
from dotscli.models.template import DOTS1_TEMPLATE
from dotscli.options.answer import AnswerFlags, SamplingFlags
from dotscli.options.engine import EngineFlags
from dotscli.options.prompt import OneShotFlags
from dotscli.terminal.progress import closed
from dotscli.terminal.terminal import Terminal


@dataclass(frozen=True)
class Request:
    """Everything that the command line said."""

    text: str | None
    files: Sequence[Path]
    model: str | None
    json: bool
    one_shot: OneShotFlags
    sampling: SamplingFlags
    answer: AnswerFlags
    engine: EngineFlags


def prompt(terminal: Terminal, request: Request) -> int:
    """Answer one request; the exit status.

    Raises:
        DotsError: anything that keeps it from being answered.
    """
    options = engine_options(request.engine, heat_folder(terminal.environ))
    # what is out of range is said before anything is loaded
    sampling_for(request.sampling, {})
    check_n_predict(request.answer.n_predict)
    draft = draft_length(request.answer.draft)
    stop = stop_strings(request.answer)
    system = system_prompt(terminal, request.answer)
    one_shot = request.one_shot
    if one_shot.no_template and system:
        raise usage("--no-template and --system can't be combined", "put all of it into the text")
    if one_shot.out is not None and one_shot.out.exists():
        raise DotsError(f"{one_shot.out} already exists", hint="give another name after -o")
    template = None
    if one_shot.template is not None:
        template = read_template(templates_folder(terminal.environ), one_shot.template)
    asked = asked_with(terminal, request.text, request.files, template)
    flags = request.answer
    if template is not None:
        system = system or template.system
        one_shot = replace(one_shot, extract=one_shot.extract or template.extract)
        flags = with_schema(flags, template.json_schema)
    grammar = grammar_for(terminal, flags)
    path = resolve(request.model, terminal)

    with open_engine(terminal, path, options) as engine:
        sampling = sampling_for(
            request.sampling,
            engine.metadata,
            grammar,
            lambda text: terminal.warn(f"{path}: {text}"),
        )
        repeatable, sampling = sampling.repeatable, sampling.with_seed()
        if one_shot.no_template:
            tokens = engine.tokenize(asked, parse_special=True)
        else:
            messages = [Message("system", system)] if system else []
            chat_template = engine.chat_template or DOTS1_TEMPLATE
            tokens = encode(engine, chat_template, [*messages, Message("user", asked)])

        at_keyboard = terminal.stdin_is_tty and terminal.stdout_is_tty
        saved = at_keyboard if one_shot.save is None else one_shot.save
        first_state = keep_states(terminal, engine) if saved else None

        def start(on_prefill: OnPrefill) -> Iterator[Piece]:
            return engine.generate(
                tokens,
                sampling,
                n_predict=request.answer.n_predict,
                stop=stop,
                on_prefill=on_prefill,
                draft=draft,
                repeatable=repeatable,
            )

        show = request.answer.stats
        figures = (show if show is not None else terminal.stderr_is_tty) and not terminal.quiet
        answer = Answer()
        held = request.json or one_shot.extract or one_shot.no_stream or one_shot.out is not None
        # what a grammar makes isn't Markdown, and the text after a raw one is not either
        drawn = request.answer.markdown
        drawn = not grammar and not one_shot.no_template if drawn is None else drawn
        output = nullcontext(lambda text: None) if held else answer_writer(
            terminal, markdown=drawn,
            status=lambda: status_line(engine.stats, engine.n_ctx) if figures else "",
        )  # fmt: skip
        status = ExitStatus.OK
        try:
            with output as write, closed(with_prefill(terminal, start)) as pieces:
                answer.read(pieces, write)
        except KeyboardInterrupt:
            status = ExitStatus.INTERRUPTED
            terminal.interrupted()
            answer.stats = engine.stats
        if request.json:
            found = answer_json(
                answer, model=path, seed=sampling.seed, n_ctx=engine.n_ctx,
                load_s=engine.load_s, phases=engine.phases, hot_off=engine.hot_off,
            )  # fmt: skip
            if one_shot.extract:
                found["code"] = first_code_block(answer.text)
            put_out(terminal, json.dumps(found, ensure_ascii=False) + "\n", one_shot.out, found)
        elif held:
            put_out(terminal, wanted_part(terminal, answer.text, one_shot), one_shot.out)
        else:
            terminal.end_line()
        if figures:
            terminal.note(
                stats_line(
                    answer.stats,
                    n_ctx=engine.n_ctx,
                    seed=sampling.seed,
                    finish_reason=answer.finish_reason,
                    width=terminal.width if terminal.stderr_is_tty else 0,
                    load_s=engine.load_s,
                )
            )
        if draft and engine.drafting.differs:
            terminal.note(OTHER_BITS)
        if answer.finish_reason == "context":
            more = engine.longer_context(2 * engine.n_ctx)
            terminal.warn(
                "the context is full, so the answer was cut off"
                + (f": --ctx-size {more} makes room" if more else "")
            )
        if engine.keep_state():
            terminal.note(first_state or WRITING)
    return int(status)


def wanted_part(terminal: Terminal, text: str, flags: OneShotFlags) -> str:
    """The answer, or its first code block.

    Raises:
        DotsError: there is no code block; the answer has gone to stderr.
    """
    if not flags.extract:
        return text if text.endswith("\n") else f"{text}\n"
    code = first_code_block(text)
    if code is None:
        terminal.say(text)
        raise DotsError("the answer has no code block", hint="leave out -x")
    return code


def put_out(terminal: Terminal, text: str, out: Path | None, document: object = None) -> None:
    """Print the text, or the JSON document that it stands for; or write it to a file.

    Raises:
        DotsError: the file can't be written; the text is on stdout then.
    """
    if out is None:
        terminal.write(text) if document is None else terminal.json(document)
        return
    try:
        with out.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as error:
        terminal.write(text)
        reason = "it exists already" if isinstance(error, FileExistsError) else error.strerror
        raise DotsError(f"{out} can't be written: {reason}") from error
    terminal.note(f"wrote {out}")
