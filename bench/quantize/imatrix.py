"""The default recipe with an importance matrix, against llama-quantize alone, for the same types.

    dots quantize CHECKPOINT -o OUT --type q4 --imatrix IMATRIX
against
    llama-quantize --imatrix IMATRIX --tensor-type-file TYPES BF16.gguf OUT Q4_K_M

llama-quantize starts from a bf16 GGUF that is made beforehand and is not counted, with GGUF's
default alignment, since it ignores any other; TYPES gives it the type that `q4` has for every
tensor. Both run in turn with the same threads, the page cache warm for both, and afterwards every
tensor of both files is compared. The importance matrix is made up: a log-normal weight for every
column of every expert, which costs the quantizers what a measured one does.

    python -m bench.quantize.imatrix          # writes docs/bench/quantize-imatrix.md

Needs bench/lib/reference.py run once and npm. Disk: about 4 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np

from bench.lib.checkpoint import cached
from bench.lib.measure import (
    ROOT,
    Run,
    alternate,
    dots,
    dots_env,
    ratios,
    run,
    spread,
    table,
    version,
    wait_until_quiet,
    warm,
    write_report,
)
from bench.lib.passes import HEADER, MB, dots_quantize, folder_bytes, row
from bench.lib.reference import cache_folder, reference
from tests.reference import with_default_alignment

N_TOKENS = 1000  # that every expert is said to have seen


def planned(checkpoint: Path, imatrix: Path | None = None) -> list[dict[str, object]]:
    """What `q4` makes of every tensor: name, type, shape in GGUF order."""
    weighted = [] if imatrix is None else ["--imatrix", imatrix]
    plan = run([*dots(), "quantize", checkpoint, "--dry-run", "--json", *weighted], env=dots_env())
    tensors: list[dict[str, object]] = json.loads(plan.stdout)["tensors"]
    return tensors


def write_imatrix(path: Path, tensors: list[dict[str, object]], seed: int = 0) -> None:
    """An importance matrix for the tensors that llama-imatrix collects."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["made up"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in tensors:
        name, shape = str(tensor["name"]), tensor["shape"]
        assert isinstance(shape, list)
        if len(shape) < 2 or not name.startswith("blk."):
            continue
        n_experts = shape[2] if len(shape) > 2 else 1
        sums = np.exp(random.standard_normal((n_experts, shape[0]))) * N_TOKENS
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32))
        counts = np.full((n_experts, 1), N_TOKENS, np.float32)
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs(tool: Path, source: Path, imatrix: Path, types: Path, out: Path, threads: int) -> Run:
    out.unlink(missing_ok=True)
    flags = ["--imatrix", imatrix, "--tensor-type-file", types]
    return run([tool, *flags, source, out, "Q4_K_M", str(threads)])


def compare(first: Path, second: Path) -> tuple[int, list[str]]:
    """How many tensors the files have, and which differ in type or bytes or are in one only."""
    files = [{t.name: t for t in gguf.GGUFReader(path).tensors} for path in (first, second)]
    names = files[0].keys() | files[1].keys()
    different = [
        name
        for name in sorted(names)
        if name not in files[0]
        or name not in files[1]
        or files[0][name].tensor_type != files[1][name].tensor_type
        or not np.array_equal(files[0][name].data, files[1][name].data)
    ]
    return len(names), different


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="1g", help="checkpoint preset (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs/bench/quantize-imatrix.md")
    options = parser.parse_args()
    tool = reference(options.cache).tool("llama-quantize")
    checkpoint = cached(options.preset, options.cache / "checkpoints", options.cache)
    work = Path(tempfile.mkdtemp(prefix="quantize-imatrix-", dir=options.cache))
    source, imatrix, types = work / "bf16.gguf", work / "imatrix.gguf", work / "types.txt"
    mine, other = work / "ours.gguf", work / "theirs.gguf"
    try:
        write_imatrix(imatrix, planned(checkpoint))
        tensors = planned(checkpoint, imatrix)
        lines = [f"^{t['name']}$={t['type']}".replace(".", r"\.").lower() for t in tensors]
        types.write_text("\n".join(lines) + "\n")
        dots_quantize(checkpoint, work / "aligned.gguf", "bf16", options.threads)
        with_default_alignment(work / "aligned.gguf", source)
        (work / "aligned.gguf").unlink()
        warm([*checkpoint.iterdir(), source])
        load = wait_until_quiet(0.1, options.patience)
        results = alternate(
            {
                "llama-quantize": lambda: theirs(
                    tool, source, imatrix, types, other, options.threads
                ),
                "dots quantize": lambda: dots_quantize(
                    checkpoint, mine, "q4", options.threads, "--imatrix", imatrix
                ),
            },
            options.repeats,
        )
        n_tensors, different = compare(mine, other)
        size = mine.stat().st_size
    finally:
        shutil.rmtree(work)
    reference_times = [r.wall_s for r in results["llama-quantize"]]
    rows = [
        row(name, runs, spread(ratios([r.wall_s for r in runs], reference_times), 3))
        for name, runs in results.items()
    ]
    found = "all are identical" if not different else f"DIFFERENT: {', '.join(different)}"
    sections = [
        f"    python -m bench.quantize.imatrix --preset {options.preset} --repeats "
        f"{options.repeats} --threads {options.threads}",
        f"Checkpoint: preset `{options.preset}` of bench/lib/checkpoint.py, "
        f"{folder_bytes(checkpoint) / MB:,.0f} MB of bf16 weights; output {size / MB:,.0f} MB of "
        f"type q4 with an importance matrix. {options.threads} threads, {options.repeats} runs of "
        f"each side in turn; medians, in brackets the range. Ratios are of neighbouring runs. "
        f"Other programs used {load:.2f} cores when it began. llama.cpp is that of "
        f"llama-cpp-python {version('llama-cpp-python')}.",
        table(HEADER, rows),
        f"{n_tensors} tensors compared by type and bytes: {found}.",
    ]
    print("\n\n".join(sections))
    write_report(options.report, "The default recipe with an importance matrix", sections)
    if different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
