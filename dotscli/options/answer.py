"""The options of an answer, as two groups: how its tokens are chosen, and what it may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dotscli.options.shared import MAX_TOKENS, Panel

UNLIMITED = -1  # tokens of an answer


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are chosen. Unset ones come from the model's metadata, or are llama.cpp's."""

    temp: Annotated[
        float | None,
        typer.Option(
            "--temp", rich_help_panel=Panel.SAMPLING, show_default="the model's, else 0.8",
            help="Temperature; 0 takes the likeliest token.",
        ),
    ] = None  # fmt: skip
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", rich_help_panel=Panel.SAMPLING, show_default="the model's, else 40",
            help="Only the K likeliest tokens; 0: all.",
        ),
    ] = None  # fmt: skip
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", rich_help_panel=Panel.SAMPLING, show_default="the model's, else 0.95",
            help="Only tokens up to this total probability.",
        ),
    ] = None  # fmt: skip
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p", rich_help_panel=Panel.SAMPLING, show_default="the model's, else 0.05",
            help="Only tokens this likely, against the best.",
        ),
    ] = None  # fmt: skip
    repeat_penalty: Annotated[
        float | None,
        typer.Option(
            "--repeat-penalty", rich_help_panel=Panel.SAMPLING,
            show_default="the model's, else 1.0", help="1.0: none.",
        ),
    ] = None  # fmt: skip
    presence_penalty: Annotated[
        float | None,
        typer.Option(
            "--presence-penalty", rich_help_panel=Panel.SAMPLING, show_default="0.0",
            help="0.0: none.",
        ),
    ] = None  # fmt: skip
    frequency_penalty: Annotated[
        float | None,
        typer.Option(
            "--frequency-penalty", rich_help_panel=Panel.SAMPLING, show_default="0.0",
            help="0.0: none.",
        ),
    ] = None  # fmt: skip
    repeat_last_n: Annotated[
        int | None,
        typer.Option(
            "--repeat-last-n", rich_help_panel=Panel.SAMPLING,
            show_default="the model's, else 64", help="Tokens that the penalties look at.",
        ),
    ] = None  # fmt: skip
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", rich_help_panel=Panel.SAMPLING, show_default="-1",
            help="The same seed gives the same answer; -1: drawn.",
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
            help="System prompt in a file.",
        ),
    ] = None  # fmt: skip
    n_predict: Annotated[
        int,
        typer.Option(
            "--n-predict", "--max-tokens", "-n", min=UNLIMITED, max=MAX_TOKENS,
            rich_help_panel=Panel.ANSWER,
            help="At most so many tokens; -1: as many as the context holds.",
        ),
    ] = UNLIMITED  # fmt: skip
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", "-r", metavar="TEXT", rich_help_panel=Panel.ANSWER,
            help="End before this text; repeatable.",
        ),
    ] = None  # fmt: skip
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema", "-j", metavar="JSON", rich_help_panel=Panel.ANSWER,
            help="Answer in JSON of this schema.",
        ),
    ] = None  # fmt: skip
    json_schema_file: Annotated[
        Path | None,
        typer.Option(
            "--json-schema-file", "-jf", metavar="FILE", rich_help_panel=Panel.ANSWER,
            help="The same, from a file.",
        ),
    ] = None  # fmt: skip
    grammar: Annotated[
        str | None,
        typer.Option(
            "--grammar", metavar="GBNF", rich_help_panel=Panel.ANSWER,
            help="Answer in this grammar.",
        ),
    ] = None  # fmt: skip
    grammar_file: Annotated[
        Path | None,
        typer.Option(
            "--grammar-file", metavar="FILE", rich_help_panel=Panel.ANSWER,
            help="The same, from a file.",
        ),
    ] = None  # fmt: skip
    stats: Annotated[
        bool | None,
        typer.Option(
            "--stats/--no-stats", rich_help_panel=Panel.OUTPUT,
            show_default="on if stderr is a terminal", help="Figures on stderr.",
        ),
    ] = None  # fmt: skip
