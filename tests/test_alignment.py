"""Files made for reading past the page cache: every tensor starts on a page, and so does every
expert of the real shapes; whatever reads a GGUF reads these.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from dotscli.engine import Engine, EngineOptions
from dotscli.errors import DotsError
from dotscli.models.gguf_file import read_gguf, read_one
from dotscli.quantize import plan_checkpoint, quantize_checkpoint
from dotscli.quantize.output import journal_lines
from dotscli.quantize.recipe.presets import PRESETS
from dotscli.quantize.verify import Damaged, verify
from tests import reference
from tests.test_resume import go_on, interrupt, resumed, warnings
from tests.transcript import dots

PAGE = 4096
REAL = Path(__file__).parent / "data" / "dots.llm1.inst"


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "q4.gguf"
    list(quantize_checkpoint(tiny_checkpoint, path, "q4"))
    return path


@pytest.fixture(scope="module")
def split(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("split")
    list(quantize_checkpoint(tiny_checkpoint, folder / "q4.gguf", "q4", split_max_size=200_000))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_expert_of_the_real_model_starts_on_a_page(preset: object) -> None:
    planned = plan_checkpoint(REAL, preset.name)  # type: ignore[attr-defined]
    stacks = [tensor for tensor in planned.tensors if tensor.spec.n_experts > 1]
    assert len(stacks) == 183
    for tensor in stacks:
        assert tensor.offset % PAGE == tensor.matrix_nbytes % PAGE == 0


def test_every_tensor_starts_on_a_page(whole: Path, split: list[Path]) -> None:
    assert len(split) > 2
    for path in (whole, *split):
        file = read_one(path)
        assert file.metadata["general.alignment"] == PAGE
        starts = [file.data_offset + tensor.offset for tensor in file.tensors]
        assert {start % PAGE for start in starts} == {0}
        last = file.tensors[-1]
        assert path.stat().st_size == -(-(starts[-1] + last.nbytes) // PAGE) * PAGE
        assert path.stat().st_size <= 200_000 or path == whole


def test_a_part_is_as_large_as_its_name_allows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What the error says is needed is enough, to the byte, padding included."""

    def make(most: int) -> None:
        out = tmp_path / f"{most}.gguf"
        list(quantize_checkpoint(tiny_checkpoint, out, "q4", split_max_size=most))

    with pytest.raises(DotsError, match="is too small") as caught:
        make(40_000)
    needed = int(caught.value.message.rsplit(maxsplit=1)[1])
    assert needed % PAGE == 0
    while True:  # the error is of the first file that is too small, not of the largest one
        try:
            make(needed)
            break
        except DotsError as error:
            more = int(error.message.rsplit(maxsplit=1)[1])
            assert more > needed
            needed = more
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert max(sizes) == needed


def test_the_package_gguf_and_llama_cpp_read_them(whole: Path, split: list[Path]) -> None:
    tensors = {}
    for path in split:
        assert gguf.GGUFReader(path).alignment == PAGE
        tensors.update(reference.read_tensors(path))
    assert tensors == reference.read_tensors(whole)
    found = []
    for path in (whole, split[0]):
        with Engine.load(path, EngineOptions(n_threads=1, n_ctx=64)) as engine:
            found.append(engine.logits(engine.tokenize("hello", parse_special=False)))
    assert np.isfinite(found[0]).all()
    assert np.array_equal(*found)


def test_tensors_are_those_of_a_file_with_the_usual_alignment(whole: Path, tmp_path: Path) -> None:
    plain = reference.with_default_alignment(whole, tmp_path / "plain.gguf")
    assert read_gguf(plain).data_offset % PAGE
    assert reference.read_tensors(plain) == reference.read_tensors(whole)


def test_verify_and_against(split: list[Path], whole: Path, tiny_checkpoint: Path) -> None:
    for path in (whole, split[0]):
        assert [event for event in verify(path) if isinstance(event, Damaged)] == []
        assert dots("verify", path, "--against", tiny_checkpoint).exit_status == 0


def test_what_an_earlier_version_began_starts_over(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its tensors lie elsewhere, and the file has another size."""
    out = tmp_path / "o.gguf"
    part, journal = (out.with_name(f"o.gguf.part{end}") for end in ("", ".journal"))
    go_on(tiny_checkpoint, tmp_path / "expected.gguf")
    interrupt(tiny_checkpoint, out)
    _as_the_earlier_version(part, journal)
    events = go_on(tiny_checkpoint, out)
    assert warnings(events) == f"{journal} is from another version of dots: starting over"
    assert resumed(events) is None
    assert out.read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_what_an_earlier_version_had_all_but_named_is_left_to_the_user(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """It has its header and is a good file, so it is not thrown away."""
    out = tmp_path / "o.gguf"
    part, journal = (out.with_name(f"o.gguf.part{end}") for end in ("", ".journal"))
    interrupt(tiny_checkpoint, out)
    _as_the_earlier_version(part, journal)
    with part.open("r+b") as file:
        file.write(b"GGUF")
    before = part.read_bytes()
    with pytest.raises(DotsError, match="would be overwritten") as caught:
        go_on(tiny_checkpoint, out)
    assert caught.value.hint.startswith("move it away")
    assert part.read_bytes() == before


def _as_the_earlier_version(part: Path, journal: Path) -> None:
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    value = json.loads(first[17:]) | {"format": 1}
    journal.write_bytes(journal_lines.line(value) + b"".join(rest))
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - 100_000)


def test_what_llama_quantize_makes_of_them_says_what_is_wrong(whole: Path, tmp_path: Path) -> None:
    """It copies general.alignment and pads to 32 bytes: no program can load that."""
    made = tmp_path / "made.gguf"
    reference.quantize(whole, made, 2, any_alignment=True)
    with pytest.raises(DotsError, match="has the offset") as caught:
        read_gguf(made)
    assert "ignore general.alignment, which is 4096 here" in caught.value.hint
