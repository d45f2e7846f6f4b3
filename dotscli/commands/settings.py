"""From options to settings of the engine and of an answer: what prompt and chat have in common.

Precedence of a sampling setting: flag, environment and config.toml (these three are one value
here), then the model's metadata, then llama.cpp's default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.engine.sampling import Sampling, in_range, range_text
from dotscli.engine.stream import check_stop
from dotscli.errors import usage
from dotscli.models.short_schema import full_schema
from dotscli.options.answer import AnswerFlags, SamplingFlags
from dotscli.options.engine import EngineFlags
from dotscli.options.sizes import bare, size_of
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import argument

if TYPE_CHECKING:
    from dotscli.engine import EngineOptions, HotOptions

# llama.cpp's keys for what a model's makers recommend (llama-arch.cpp, general.sampling.*).
METADATA_KEYS = {
    "temp": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
    "repeat_last_n": "general.sampling.penalty_last_n",
}
INTEGERS = ("top_k", "repeat_last_n", "seed")


def engine_options(flags: EngineFlags, heat_folder: Path) -> EngineOptions:
    """The flags as the engine wants them; in `heat_folder` it keeps how much experts are used.

    Raises:
        DotsError: a value out of its range (exit status 2).
    """
    from dotscli.engine import EngineOptions

    layers: int | None = None
    if flags.n_gpu_layers == "all":
        layers = 1 << 15
    elif flags.n_gpu_layers != "auto":
        if not flags.n_gpu_layers.isdecimal() or len(flags.n_gpu_layers) > 9:
            raise usage(
                f"invalid --n-gpu-layers {flags.n_gpu_layers[:40]!r}",
                "give a number of layers, all or auto",
            )
        layers = int(flags.n_gpu_layers)
    return EngineOptions(
        n_ctx=flags.ctx_size,
        n_threads=flags.threads,
        n_threads_batch=flags.threads_batch,
        n_batch=flags.batch_size,
        n_gpu_layers=layers,
        n_cpu_moe=flags.n_cpu_moe,
        cpu_moe=flags.cpu_moe,
        override_tensor=tuple(flags.override_tensor or ()),
        cache_type_k=flags.cache_type_k.lower(),
        cache_type_v=flags.cache_type_v.lower(),
        flash_attn=flags.flash_attn,
        rpc=tuple(part.strip() for part in flags.rpc.split(",") if part.strip()),
        hot=hot_options(flags, heat_folder),
        n_ubatch=flags.ubatch_size,
        tier=not flags.no_tier,
        ram_nbytes=flags.ram,
        verbose=flags.verbose,
    )


def hot_options(flags: EngineFlags, folder: Path) -> HotOptions | None:
    """What the flags say of hot experts; None is off.

    Raises:
        DotsError: --hot is neither auto, off nor a size (exit status 2).
    """
    from dotscli.engine import HotOptions

    wanted = flags.hot.strip().lower()
    nbytes = None if wanted == "auto" else size_of(wanted)
    if wanted == "off" or nbytes == 0:
        if flags.heat_trace is not None:
            raise usage("--heat-trace needs hot experts", "for example: --hot 1M --hot-device CPU")
        return None
    if wanted != "auto" and nbytes is None:
        raise usage(f"invalid --hot {flags.hot!r}", "give auto, off or a size such as 8G")
    if suggestion := bare(flags.hot):
        raise usage(
            f"--hot {flags.hot} has no unit, so it means {flags.hot} bytes", f"--hot {suggestion}"
        )
    return HotOptions(
        nbytes=nbytes,
        device=flags.hot_device,
        heat=flags.heat,
        folder=folder,
        adapt=not flags.no_adapt,
        trace=flags.heat_trace,
    )


def sampling_for(
    flags: SamplingFlags,
    metadata: Mapping[str, str],
    grammar: str | None = None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Sampling:
    """The settings that hold for a model.

    Args:
        flags: what the user wants.
        metadata: of the model; what it recommends outside of a setting's range is left out.
        grammar: GBNF.
        warn: gets a sentence for each recommendation that was left out.

    Raises:
        DotsError: a value out of its range (exit status 2).
    """
    values: dict[str, float | int] = {}
    for name in (*METADATA_KEYS, "presence_penalty", "frequency_penalty", "seed"):
        if (given := getattr(flags, name)) is not None:
            values[name] = given
    for name, key in METADATA_KEYS.items():
        if key in metadata and name not in values:
            advised = _advised(name, metadata[key])
            if advised is not None:
                values[name] = advised
                continue
            flag = f"--{name.replace('_', '-')}"
            warn(
                f"{key} is {metadata[key][:40]}, not {range_text(name)}: ignored, "
                f"{flag} is {getattr(Sampling, name):g}"
            )
    return Sampling(**values, grammar=grammar)  # type: ignore[arg-type]  # checked by Sampling


def _advised(name: str, text: str) -> float | int | None:
    """A recommended value, None if it is no number or outside of its range."""
    try:
        number = float(f"{float(text):.6g}")  # stored as float32: 0.8, not 0.80000001
        value = int(number) if name in INTEGERS else number
    except (ValueError, OverflowError):
        return None
    return value if in_range(name, value) else None


def system_prompt(terminal: Terminal, flags: AnswerFlags) -> str:
    """The system prompt that was given, empty without one."""
    if flags.system is not None and flags.system_file is not None:
        raise usage("--system and --system-file can't be combined", "give only one of them")
    if flags.system_file is not None:
        return terminal.read_file(flags.system_file).rstrip("\n")
    return argument(flags.system or "")


def stop_strings(flags: AnswerFlags) -> tuple[str, ...]:
    """The texts that end an answer.

    Raises:
        DotsError: one that can't be one (exit status 2).
    """
    stop = tuple(argument(text) for text in flags.stop or ())
    check_stop(stop)
    return stop


def grammar_for(terminal: Terminal, flags: AnswerFlags) -> str | None:
    """The GBNF that the answer must follow, from whichever option gives one.

    Raises:
        DotsError: two of them, a file that can't be read, or a grammar or schema that can't be
            used.
    """
    given = [
        name
        for name in ("json_schema", "json_schema_file", "grammar", "grammar_file")
        if getattr(flags, name) is not None
    ]
    if len(given) > 1:
        first, second = (name.replace("_", "-") for name in given[:2])
        raise usage(f"--{first} and --{second} can't be combined", "give only one of them")
    if flags.grammar_file is not None:
        return _checked_grammar(terminal.read_file(flags.grammar_file))
    if flags.grammar is not None:
        return _checked_grammar(argument(flags.grammar))
    schema = None if flags.json_schema is None else full_schema(argument(flags.json_schema))
    if flags.json_schema_file is not None:
        schema = terminal.read_file(flags.json_schema_file)
    if schema is None:
        return None
    from dotscli.engine import json_schema_grammar

    return json_schema_grammar(schema)


def _checked_grammar(text: str) -> str:
    from dotscli.engine import check_grammar

    check_grammar(text)
    return text
