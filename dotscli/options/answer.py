"""The options of an answer, as two groups: how its tokens are chosen, and what it may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dotscli.options.shared import Panel


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are chosen. Unset ones come from the model's metadata, or are llama.cpp's."""

    temp: Annotated[
        float | None,
        typer.Option(
            "--temp", rich_help_panel=Panel.SAMPLING, show_default="the model's, else 0.8",
            help="Temperature; 0 always takes the likeliest token.",
        ),
    ] = None  # fmt: skip
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", rich_help_panel=Panel.SAMPLING, show_default="the model's, else 40",
            help="Choose among the K likeliest tokens; 0: all.",
        ),
    ] = None  # fmt: skip
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", rich_help_panel=Panel.SAMPLING, show_default="the model's, else 0.95",
            help="Choose among the likeliest tokens up to this total probability.",
        ),
    ] = None  # fmt: skip
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p", rich_help_panel=Panel.SAMPLING, show_default="the model's, else 0.05",
            help="Least probability of a token, relative to the likeliest.",
        ),
    ] = None  # fmt: skip
    repeat_penalty: Annotated[
        float | None,
        typer.Option(
            "--repeat-penalty", rich_help_panel=Panel.SAMPLING,
            show_default="the model's, else 1.0", help="Penalty on repeated tokens; 1.0: none.",
        ),
    ] = None  # fmt: skip
    presence_penalty: Annotated[
        float | None,
        typer.Option(
            "--presence-penalty", rich_help_panel=Panel.SAMPLING, show_default="0.0",
            help="Penalty on tokens that have occurred; 0.0: none.",
        ),
    ] = None  # fmt: skip
    frequency_penalty: Annotated[
        float | None,
        typer.Option(
            "--frequency-penalty", rich_help_panel=Panel.SAMPLING, show_default="0.0",
            help="Penalty on tokens that have occurred; 0.0: none.",
        ),
    ] = None  # fmt: skip
    repeat_last_n: Annotated[
        int | None,
        typer.Option(
            "--repeat-last-n", rich_help_panel=Panel.SAMPLING,
            show_default="the model's, else 64", help="Recent tokens that the penalties consider.",
        ),
    ] = None  # fmt: skip
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", rich_help_panel=Panel.SAMPLING, show_default="-1",
            help="The same seed gives the same answer; -1: random.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class AnswerFlags:
    """What an answer may be and when it ends."""

    system: Annotated[
        str | None,
        typer.Option(
            "--system", "-s", metavar="TEXT", rich_help_panel=Panel.INPUT, help="System prompt."
        ),
    ] = None
    system_file: Annotated[
        Path | None,
        typer.Option(
            "--system-file", metavar="FILE", rich_help_panel=Panel.INPUT,
            help="Read the system prompt from a file.",
        ),
    ] = None  # fmt: skip
    n_predict: Annotated[
        int,
        typer.Option(
            "--n-predict", "--max-tokens", "-n", metavar="N",
            rich_help_panel=Panel.ANSWER,
            help="Maximum number of tokens to generate; -1: as many as the context holds.",
        ),
    ] = -1  # fmt: skip
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", "-r", metavar="TEXT", rich_help_panel=Panel.ANSWER,
            help="Stop before this text; repeatable.",
        ),
    ] = None  # fmt: skip
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema", "-j", metavar="JSON", rich_help_panel=Panel.ANSWER,
            help="Constrain the answer to this JSON schema, or to fields: 'name, age int'.",
        ),
    ] = None  # fmt: skip
    json_schema_file: Annotated[
        Path | None,
        typer.Option(
            "--json-schema-file", "-jf", metavar="FILE", rich_help_panel=Panel.ANSWER,
            help="Read it from a file.",
        ),
    ] = None  # fmt: skip
    grammar: Annotated[
        str | None,
        typer.Option(
            "--grammar", metavar="GBNF", rich_help_panel=Panel.ANSWER,
            help="Constrain the answer to this grammar.",
        ),
    ] = None  # fmt: skip
    grammar_file: Annotated[
        Path | None,
        typer.Option(
            "--grammar-file", metavar="FILE", rich_help_panel=Panel.ANSWER,
            help="Read it from a file.",
        ),
    ] = None  # fmt: skip
    stats: Annotated[
        bool | None,
        typer.Option(
            "--stats/--no-stats", rich_help_panel=Panel.OUTPUT,
            show_default="on if stderr is a terminal", help="Print statistics to stderr.",
        ),
    ] = None  # fmt: skip
    draft: Annotated[
        str,
        typer.Option(
            "--draft", metavar="N", rich_help_panel=Panel.RUN,
            help="Guess N tokens ahead (1 to 4) from what the text repeats; auto: where that pays, "
            "and changes no answer that can be repeated; off.",
        ),
    ] = "auto"  # fmt: skip
    markdown: Annotated[
        bool | None,
        typer.Option(
            "--markdown/--no-markdown", rich_help_panel=Panel.OUTPUT,
            show_default="on, but for what a grammar makes",
            help="Draw Markdown on a terminal; what goes into a pipe is never changed.",
        ),
    ] = None  # fmt: skip
