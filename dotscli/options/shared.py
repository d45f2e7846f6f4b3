"""The options of every command, declared once and spelled as llama.cpp spells them.

A group of options is a frozen dataclass whose fields are typer options; a command that is `grouped`
takes whole groups as its parameters. Options that have their default elsewhere (the model's
metadata, the engine) are None when nobody gave them. It knows no model and no engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from `48G`, `512 MiB`, `1.5g` or `4096`; the prefixes are powers of 1024.

    Raises:
        typer.BadParameter: it is no such size.
    """
    nbytes = size_of(str(text))
    if nbytes is None:
        raise typer.BadParameter(f"{str(text)[:40]!r} is not a size such as 512M, 24G or 48GiB")
    return nbytes


def size_of(text: str) -> int | None:
    """The same, and None for what is no size."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        return None
    power = ("", "K", "M", "G", "T").index(match[2].upper())
    nbytes = float(match[1]) * 1024**power
    return int(nbytes) if nbytes < 2**63 else None


def gguf_files(incomplete: str) -> list[str]:
    """Shell completion of a model: GGUF files, and folders that may hold some."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        names = [f"{p}/" if p.is_dir() else str(p) for p in found if p.is_dir() or _is_gguf(p)]
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", envvar="DOTS_MODEL", metavar="MODEL", autocompletion=gguf_files,
        help="GGUF file, or the first file of a split one. Without it: the built-in nano model.",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are chosen. Unset ones come from the model's metadata, or are llama.cpp's."""

    temp: Annotated[
        float | None, typer.Option("--temp", help="Temperature; 0 takes the likeliest token.")
    ] = None
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Only the K likeliest tokens; 0: all.")
    ] = None
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Only tokens up to this total probability.")
    ] = None
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Only tokens this likely, against the best.")
    ] = None
    repeat_penalty: Annotated[float | None, typer.Option("--repeat-penalty", help="1.0: none.")] = (
        None
    )
    presence_penalty: Annotated[
        float | None, typer.Option("--presence-penalty", help="0.0: none.")
    ] = None
    frequency_penalty: Annotated[
        float | None, typer.Option("--frequency-penalty", help="0.0: none.")
    ] = None
    repeat_last_n: Annotated[
        int | None, typer.Option("--repeat-last-n", help="Tokens that the penalties look at.")
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", help="The same seed gives the same answer; -1: drawn.")
    ] = None


@dataclass(frozen=True)
class AnswerFlags:
    """What an answer may be and when it ends."""

    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")
    ] = None
    system_file: Annotated[
        Path | None, typer.Option("--system-file", metavar="FILE", help="System prompt in a file.")
    ] = None
    n_predict: Annotated[
        int,
        typer.Option(
            "--n-predict", "--max-tokens", "-n", help="At most so many tokens; -1: no limit."
        ),
    ] = -1
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", "-r", metavar="TEXT", help="End before this text; repeatable."),
    ] = None
    json_schema: Annotated[
        str | None,
        typer.Option("--json-schema", "-j", metavar="JSON", help="Answer in JSON of this schema."),
    ] = None
    json_schema_file: Annotated[
        Path | None,
        typer.Option("--json-schema-file", "-jf", metavar="FILE", help="The same, from a file."),
    ] = None
    grammar: Annotated[
        str | None, typer.Option("--grammar", metavar="GBNF", help="Answer in this grammar.")
    ] = None
    grammar_file: Annotated[
        Path | None,
        typer.Option("--grammar-file", metavar="FILE", help="The same, from a file."),
    ] = None
    stats: Annotated[
        bool | None,
        typer.Option("--stats/--no-stats", help="Figures on stderr; on if it is a terminal."),
    ] = None


@dataclass(frozen=True)
class PlacementFlags:
    """Where a model runs; names and values as in llama.cpp."""

    threads: Annotated[
        int,
        typer.Option("--threads", "-t", envvar="DOTS_THREADS", help="0: one per physical core."),
    ] = 0
    threads_batch: Annotated[
        int, typer.Option("--threads-batch", "-tb", help="For reading the prompt; 0: as -t.")
    ] = 0
    n_gpu_layers: Annotated[
        str,
        typer.Option(
            "--n-gpu-layers", "-ngl", envvar="DOTS_N_GPU_LAYERS", metavar="N",
            help="Layers on the GPU: a number, all or auto.",
        ),
    ] = "auto"  # fmt: skip
    cpu_moe: Annotated[
        bool, typer.Option("--cpu-moe", "-cmoe", help="All routed experts stay on the CPU.")
    ] = False
    n_cpu_moe: Annotated[
        int, typer.Option("--n-cpu-moe", "-ncmoe", help="Those of the first N layers do.")
    ] = 0
    override_tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--override-tensor", "-ot", metavar="REGEX=BUFFER", help="Place tensors; repeatable."
        ),
    ] = None
    flash_attn: Annotated[
        str, typer.Option("--flash-attn", "-fa", metavar="WHEN", help="on, off or auto.")
    ] = "auto"
    rpc: Annotated[
        str, typer.Option("--rpc", metavar="HOST:PORT,...", help="Workers to run layers on.")
    ] = ""
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what llama.cpp logs.")] = (
        False
    )


@dataclass(frozen=True)
class EngineFlags(PlacementFlags):
    """What else is decided about a model that answers."""

    ctx_size: Annotated[
        int,
        typer.Option(
            "--ctx-size", "-c", envvar="DOTS_CTX_SIZE", help="Tokens; 0: sized by itself."
        ),
    ] = 0
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", help="Prompt tokens read at once.")
    ] = 512
    cache_type_k: Annotated[
        str, typer.Option("--cache-type-k", "-ctk", metavar="TYPE", help="f16, q8_0, ...")
    ] = "f16"
    cache_type_v: Annotated[
        str, typer.Option("--cache-type-v", "-ctv", metavar="TYPE", help="f16, q8_0, ...")
    ] = "f16"
    hot: Annotated[
        str,
        typer.Option(
            "--hot", envvar="DOTS_HOT", metavar="SIZE",
            help="Device memory for hot experts; auto: what is free on a GPU; off: none.",
        ),
    ] = "auto"  # fmt: skip
    hot_device: Annotated[
        str,
        typer.Option("--hot-device", metavar="NAME", help="Where they live; else on the GPU."),
    ] = ""
    heat: Annotated[
        Path | None,
        typer.Option("--heat", metavar="FILE", help="Which are hot at first; or an imatrix."),
    ] = None
    heat_trace: Annotated[
        Path | None,
        typer.Option(
            "--heat-trace", metavar="FILE", help="Write there which experts each token uses."
        ),
    ] = None
    no_adapt: Annotated[
        bool, typer.Option("--no-adapt", help="Exchange none of them while answering.")
    ] = False


@dataclass(frozen=True)
class PlanFlags:
    """What to plan for. Sizes in bytes; unset ones are found out."""

    vram: Annotated[
        int | None,
        typer.Option(
            "--vram", metavar="SIZE", parser=parse_size, help="Of the device; else its free memory."
        ),
    ] = None
    ram: Annotated[
        int | None,
        typer.Option(
            "--ram", metavar="SIZE", parser=parse_size, help="Main memory; else what is available."
        ),
    ] = None
    ctx_size: Annotated[
        int,
        typer.Option("--ctx-size", "-c", min=0, max=1 << 20, help="Tokens; 0: 8192 at most."),
    ] = 0
    cache_type_k: Annotated[
        str, typer.Option("--cache-type-k", "-ctk", metavar="TYPE", help="f16, q8_0, ...")
    ] = "f16"
    cache_type_v: Annotated[
        str, typer.Option("--cache-type-v", "-ctv", metavar="TYPE", help="f16, q8_0, ...")
    ] = "f16"
    type: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE", help="What a checkpoint would be quantized to; else q4."
        ),
    ] = None
    heat: Annotated[
        Path | None,
        typer.Option("--heat", metavar="FILE", help="How much experts are used; or an imatrix."),
    ] = None
    bandwidth: Annotated[
        int | None,
        typer.Option(
            "--bandwidth", metavar="SIZE", parser=parse_size,
            help="Of main memory, per second: says how many tokens it allows.",
        ),
    ] = None  # fmt: skip
