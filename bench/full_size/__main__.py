"""Stand-ins of the real model's size on a few GB of disk, and what happens with them.

    python -m bench.full_size model                      # the real shapes, 77.5 GiB: XFS, root
    python -m bench.full_size model --preset tier -o FILE.gguf     # 3.6 GB of random blocks
    python -m bench.full_size holes -o FILE.gguf         # header and hole: no disk, any system
    python -m bench.full_size checkpoint                 # 266 GiB of bf16 in 67 shards: XFS, root
    python -m bench.full_size pass                       # quantize, kill, resume, verify: 1,300 s
    python -m bench.full_size answer --out FILE.md       # `dots prompt` under 8, 12 and 16 GiB
    python -m bench.full_size clean                      # unmount and remove everything

Everything lies in --at, file systems in sparse files among it, until `clean` removes it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench.full_size import shapes, volume
from bench.full_size.answers import N_MESSAGE_TOKENS, N_TOKENS, answers_table
from bench.full_size.checkpoint import write_checkpoint
from bench.full_size.holes import write_holes
from bench.full_size.model import write_model
from bench.full_size.passes import results, run_passes
from bench.full_size.reflink import occupied
from bench.gpu.model import Routing
from bench.lib.checkpoint import Shape
from bench.lib.measure import table, write_report
from bench.lib.reference import cache_folder
from dotscli.options.sizes import parse_size

CHECKPOINT = "dots.llm1.inst"
AT = Path(tempfile.gettempdir()) / "dots-full-size"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.full_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--at", type=Path, default=AT, help="folder (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="of the tokenizer")
    steps = parser.add_subparsers(required=True, metavar="STEP")
    _model_arguments(steps.add_parser("model", help="a GGUF that computes, of random blocks"))
    _holes_arguments(steps.add_parser("holes", help="a GGUF of a header and a hole"))
    checkpoint = steps.add_parser("checkpoint", help="the published layout, shards that share")
    checkpoint.add_argument("--layers", type=int, default=62)
    checkpoint.set_defaults(run=_checkpoint)
    passes = steps.add_parser("pass", help="quantize, kill, resume, verify, inspect, plan")
    passes.set_defaults(run=_pass)
    answer = steps.add_parser("answer", help="the model under limits of memory, and a report")
    answer.add_argument("--out", type=Path, required=True, help="docs/bench/full-size.md")
    answer.set_defaults(run=_answer)
    clean = steps.add_parser("clean", help="unmount and remove everything in --at")
    clean.set_defaults(run=_clean)
    options = parser.parse_args()
    options.run(options)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, help="default: PRESET.gguf on XFS in --at")
    parser.add_argument("--preset", choices=shapes.PRESETS, default="real")
    parser.add_argument("--type", help="as of dots quantize (default: q4, of tier q4_0)")
    parser.add_argument("--size", type=parse_size, help="as many layers as fit, like 3.5G")
    for name in ("layers", "experts", "experts-used", "hidden", "expert-width", "heads"):
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")
    parser.add_argument("--vocab", choices=("qwen", "small"), help="152,064 tokens, or 512")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skew", type=float, default=0.5, help="0: all experts as popular")
    parser.add_argument("--topic", type=float, default=0.5, help="0 to 1: what tokens share")
    parser.set_defaults(run=_model)


def _holes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, help="default: holes.gguf in --at")
    parser.add_argument("--type", default="q4", help="as of dots quantize (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=62)
    parser.set_defaults(run=_holes)


def _holes(options: argparse.Namespace) -> None:
    shape = replace(shapes.PRESETS["real"], layers=options.layers)
    made = shapes.stand_in(shape, options.type, options.cache)
    out = options.out or options.at / "holes.gguf"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_holes(out, made)
    _said(out, "a hole")


def _checkpoint(options: argparse.Namespace) -> None:
    began = time.monotonic()
    shape = replace(shapes.PRESETS["real"], layers=options.layers)
    volumes = volume.Volume(options.at, "xfs").mount()
    folder = volumes / CHECKPOINT
    nbytes = write_checkpoint(folder, shape, options.cache)
    files = len(list(folder.glob("*.safetensors")))
    print(
        f"{folder}: {nbytes:,} bytes of weights in {files} shards; {_used(volumes)} used on the "
        f"volume, {time.monotonic() - began:.0f} s"
    )


def _pass(options: argparse.Namespace) -> None:
    run_passes(options.at, volume.Volume(options.at, "xfs").mount() / CHECKPOINT)


def _answer(options: argparse.Namespace) -> None:
    model = volume.Volume(options.at, "xfs").mount() / "real.gguf"
    passes = [
        [name, f"{found['wall_s']:.1f}", f"{found['cpu_s']:.1f}", _mib(found["peak_private"])]
        for name, found in results(options.at).items()
    ]
    answers = (
        f"{model.name}: {model.stat().st_size:,} bytes of the real shapes, blocks of random "
        f"weights that share their place on the disk. `dots prompt`, {N_TOKENS} tokens, and "
        f"`dots chat`, the second answer of {N_MESSAGE_TOKENS}; experts in memory and hits are "
        "those at the end. Before each `dots plan` under the same limit, with the bandwidths of "
        "`dots doctor --measure`. No context is asked for."
    )
    sections = ["## An answer under a hard limit of memory", answers, answers_table(model)]
    if passes:
        header = ["step", "wall, s", "CPU, s", "peak of private memory, MiB"]
        sections += ["## The pass, when it was last run", table(header, passes)]
    write_report(options.out, "The model at its full size", sections)


def _mib(nbytes: float | str) -> str:
    return f"{float(nbytes) / 2**20:.0f}"


def _model(options: argparse.Namespace) -> None:
    began = time.monotonic()
    type = options.type or ("q4_0" if options.preset == "tier" else "q4")
    made = shapes.stand_in(_shape(options, type), type, options.cache)
    out = options.out or volume.Volume(options.at, "xfs").mount() / f"{options.preset}.gguf"
    shared = write_model(out, made, Routing(options.skew, options.topic), options.seed)
    how = f"shared blocks, {_used(out.parent)} on the disk" if shared else "blocks of its own"
    _said(out, f"{how}, {time.monotonic() - began:.0f} s")


def _shape(options: argparse.Namespace, type: str) -> Shape:
    changed = {
        name: value
        for name in ("layers", "experts", "experts_used", "hidden", "expert_width", "heads",
                     "vocab")
        if (value := getattr(options, name)) is not None
    }  # fmt: skip
    shape = replace(shapes.PRESETS[options.preset], **changed)
    return shapes.fitting(shape, type, options.size) if options.size else shape


def _clean(options: argparse.Namespace) -> None:
    for kind in volume.KINDS:
        volume.Volume(options.at, kind).clean()
    for path in options.at.glob("*.gguf") if options.at.is_dir() else ():
        path.unlink()


def _used(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).used / 1e9:.1f} GB"


def _said(path: Path, text: str) -> None:
    status = path.stat()
    print(f"{path}: {status.st_size:,} bytes, {occupied(path):,} of them allocated; {text}")


if __name__ == "__main__":
    main()
