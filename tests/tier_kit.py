"""A model whose experts are read when they are needed, opened at the backend, for its tests."""

from __future__ import annotations

from pathlib import Path

from dotscli.hot.backend import plugin
from dotscli.hot.backend.plugin import HotModel
from dotscli.hot.expert_files import expert_files
from dotscli.models.gguf_file import read_gguf
from tests.dots1_gguf import Run

PAGE = 4096


class Tiered:
    """An opened model, its run, and how much memory its experts take."""

    def __init__(self, path: Path, share: float, device: str | None = None, **how: object) -> None:
        files, self.parts = expert_files(read_gguf(path))
        self.hot: HotModel = plugin.backend().open(device)
        self.hot.read_from(files, self.parts)
        self.run = Run(path, self.hot, use_mmap=False, **how)  # type: ignore[arg-type]
        self.hot.set_ram(self.nbytes(share))

    def nbytes(self, share: float) -> int:
        """Memory for so much of the experts, and for one at least."""
        each = [self._pages(part.expert_nbytes) for part in self.parts]
        whole = sum(n * part.n_experts for n, part in zip(each, self.parts, strict=True))
        return max(int(share * whole), 3 * max(each))

    @staticmethod
    def _pages(nbytes: int) -> int:
        return (nbytes + 2 * PAGE - 1) // PAGE * PAGE

    def __enter__(self) -> Tiered:
        return self

    def __exit__(self, *_: object) -> None:
        self.run.close()
