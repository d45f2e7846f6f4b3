"""Is what `dots quantize` writes what llama.cpp's two steps write? Tensor by tensor, key by key.

For each checkpoint: llama.cpp's converter makes a bf16 GGUF, llama-quantize makes every preset
from it, `dots quantize` makes the same preset from the checkpoint in one pass. Compared are the
names, shapes, types and bytes of all tensors and all metadata. A difference that isn't
listed in EXPECTED fails. At the end the default recipe and every preset are loaded and run by
llama.cpp's own llama-bench.

    python -m bench.quantize.upstream_equal --converter-python PYTHON_WITH_TORCH

Needs bench/lib/reference.py run once, npm, and a Python with torch, transformers and gguf's
requirements for the converter. Disk: about 1 GB.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from bench.lib.checkpoint import PRESETS, cached
from bench.lib.measure import ROOT, Transcript, dots, dots_env, run, write_report
from bench.lib.reference import LLAMA_CPP_PYTHON, Reference, cache_folder, reference

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs", "mxfp4_moe")
SHAPES = ("mini", "odd", "ragged")

# Key -> why the difference is wanted.
EXPECTED = {
    "tokenizer.ggml.bos_token_id": "the model has none; llama.cpp would take 11, a comma here",
    "tokenizer.ggml.eot_token_id": "<|endofresponse|> ends a reply, whatever eos is",
    "general.alignment": "4096, so that experts start on a page",
    "dots.checksum.blake2b": "one checksum per tensor, for `dots verify`",
}


def metadata(reader: GGUFReader) -> dict[str, object]:
    """All key-value pairs, except the reader's own three about the file's header."""
    return {
        name: ([t.name for t in field.types], field.contents())
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }


def compare_tensors(ours: GGUFReader, theirs: GGUFReader) -> list[str]:
    """One line per tensor that is missing, extra, or differs in type, shape or bytes."""
    left = {t.name: t for t in ours.tensors}
    right = {t.name: t for t in theirs.tensors}
    lines = [f"{name}: only in ours" for name in left.keys() - right.keys()]
    lines += [f"{name}: only in theirs" for name in right.keys() - left.keys()]
    for name in sorted(left.keys() & right.keys()):
        a, b = left[name], right[name]
        if a.tensor_type != b.tensor_type or list(a.shape) != list(b.shape):
            lines.append(
                f"{name}: {a.tensor_type.name} {list(a.shape)}, "
                f"theirs {b.tensor_type.name} {list(b.shape)}"
            )
            continue
        x, y = (np.asarray(t.data).view(np.uint8).reshape(-1) for t in (a, b))
        if not np.array_equal(x, y):
            wrong = np.flatnonzero(x != y)
            lines.append(
                f"{name} ({a.tensor_type.name}): {len(wrong)} of {len(x)} bytes differ, "
                f"the first at {wrong[0]}"
            )
    return lines


def compare_keys(ours: dict[str, object], theirs: dict[str, object]) -> list[str]:
    """One line per key that is missing, extra or different, in value or in type."""
    lines = []
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in theirs:
            lines.append(f"{key}: only in ours: {short(ours[key])}")
        elif key not in ours:
            lines.append(f"{key}: only in theirs: {short(theirs[key])}")
        elif ours[key] != theirs[key]:
            lines.append(f"{key}: {short(ours[key])}, theirs {short(theirs[key])}")
    return lines


def short(value: object) -> str:
    text = str(value)
    return text if len(text) < 120 else text[:117] + "..."


def upstream(checkpoint: Path, type: str, where: Reference, python: str, work: Path) -> Path:
    """The two steps: bf16 GGUF (kept), then llama-quantize."""
    bf16 = work / f"{checkpoint.name}.bf16.gguf"
    if not bf16.exists():
        run([python, where.converter, checkpoint, "--outtype", "bf16", "--outfile", bf16])
    out = work / f"{checkpoint.name}.{type}.theirs.gguf"
    run([where.tool("llama-quantize"), bf16, out, type.upper(), "2"])
    return out


def one_pass(checkpoint: Path, type: str, work: Path) -> Path:
    out = work / f"{checkpoint.name}.{type}.ours.gguf"
    out.unlink(missing_ok=True)
    run(
        [*dots(), "quantize", checkpoint, "-o", out, "--type", type, "--threads", "2"],
        env=dots_env(),
    )
    return out


def stock_loads(gguf: Path, where: Reference) -> str:
    """Let llama-bench load and run the file; its own result line."""
    tests = ["-p", "8", "-n", "2", "-r", "1", "-t", "1", "-o", "csv"]
    done = run([where.tool("llama-bench"), "-m", gguf, *tests])
    return f"{len(done.stdout.splitlines()) - 1} tests run"


def check(
    checkpoint: Path, type: str, where: Reference, python: str, work: Path, out: Transcript
) -> bool:
    """Make one preset both ways, say what differs; whether nothing unexpected does."""
    theirs_path = upstream(checkpoint, type, where, python, work)
    ours_path = one_pass(checkpoint, type, work)
    ours, theirs = GGUFReader(ours_path), GGUFReader(theirs_path)
    tensors = compare_tensors(ours, theirs)
    keys = compare_keys(metadata(ours), metadata(theirs))
    types: dict[str, int] = {}
    for tensor in ours.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    unexpected = [line for line in keys if line.split(":")[0] not in EXPECTED]
    good = not tensors and not unexpected
    wanted = len(keys) - len(unexpected)
    del ours, theirs
    out.say(
        f"{'equal' if good else 'DIFFERENT'}  {checkpoint.name:7s} {type:10s} "
        f"{sum(types.values())} tensors ({', '.join(f'{n} {t}' for t, n in types.items())}), "
        f"{wanted} wanted keys more, llama-bench: {stock_loads(ours_path, where)}"
    )
    for line in [*(f"tensor {t}" for t in tensors), *(f"key {k}" for k in unexpected)]:
        out.say(f"    {line}")
    for path in (ours_path, theirs_path):
        path.unlink()
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--converter-python",
        default=sys.executable,
        help="a Python with torch and transformers (default: this one)",
    )
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all")
    parser.add_argument("--type", action="append", choices=TYPES, help="default: all")
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "equal.md")
    options = parser.parse_args()
    where = reference(options.cache)
    work = options.cache / "upstream_equal"
    work.mkdir(parents=True, exist_ok=True)
    good = True
    out = Transcript()
    try:
        for shape in options.shape or SHAPES:
            checkpoint = cached(shape, options.cache / "checkpoints", options.cache)
            for type in options.type or TYPES:
                good &= check(checkpoint, type, where, options.converter_python, work, out)
            default = one_pass(checkpoint, "q4", work)
            out.say(f"ours   {checkpoint.name:7s} q4: llama-bench: {stock_loads(default, where)}")
    finally:
        shutil.rmtree(work)
    out.say("all equal" if good else "there are differences")
    shapes = "\n".join(f"- `{name}`: {PRESETS[name]}" for name in options.shape or SHAPES)
    keys = "\n".join(f"- `{key}`: {reason}" for key, reason in EXPECTED.items())
    write_report(
        options.report,
        "Equal to llama.cpp's own conversion and quantizer",
        [
            "`python -m bench.quantize.upstream_equal`, llama.cpp of llama-cpp-python "
            f"{LLAMA_CPP_PYTHON}. "
            "Checkpoints:",
            shapes,
            "Keys that only our files have, by intent:",
            keys,
            out.block(),
        ],
    )
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
