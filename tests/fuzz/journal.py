"""NAME.part and NAME.part.journal of an interrupted quantize: the same command goes on with them.

Whatever they hold, the output has to be that of a run without interruption, byte for byte; after a
refusal --restart has to help; and what another program wrote may not be touched. Hashes of the
journal depend on the machine, so an input has placeholders for them, and @mark@ for a line's
checksum.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from dotscli.errors import DotsError
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.convert import TensorDone
from dotscli.quantize.output.error_report import read_report
from tests import tiny
from tests.fuzz.mutate import damaged, length, number, pick, times
from tests.fuzz.mutate_json import spoiled
from tests.fuzz.safetensors import SIZES
from tests.fuzz.target import Target, WrongResult, check_words, pack, unpack

TYPE = "q4_0"
HUGE_ONCE_IN = 4000  # of the lines that are spoiled
N_FINISHED = 20  # tensors that the interrupted run has made
FOREIGN = (
    b"Dear diary, ",
    b"\x89PNG\r\n\x1a\n",
    b"PK\x03\x04",
    b"%PDF-1.7",
    b"\x7fELF",
    b'{"a": 1}\n',
)
OPTIONS = (b"", b"", b"", b"report", b"report", b"restart", b"named", b"report named", b"bare")
_PLACE = re.compile(rb"@[a-z]+(?: \d+)*@")


class Journal(Target):
    """What an interrupted run has left: journal, part, and perhaps files with their names."""

    def prepare(self) -> None:
        folder = tiny.write_checkpoint(self.valid / "in", n_shards=1, **SIZES)
        (self.valid / "left").mkdir()
        self._quantize(folder, self.valid / "whole.gguf", None, [])
        # The output of the interrupted run has the same name, on which the journal depends.
        events = quantize_checkpoint(
            folder, self.valid / "left" / "o.gguf", TYPE, threads=1,
            report=self.valid / "left" / "r.json",
        )  # fmt: skip
        done = 0
        for event in events:
            done += isinstance(event, TensorDone)
            if done == N_FINISHED:
                break
        events.close()  # type: ignore[attr-defined]

    def open(self) -> None:
        left = self.valid / "left"
        self.whole = (self.valid / "whole.gguf").read_bytes()
        self.part = (left / "o.gguf.part").read_bytes()
        self.values = {b"@mark@": b"@mark@"}  # it stands until the line is complete
        self.lines = [
            self._with_places(line.partition(b" ")[2], number)
            for number, line in enumerate((left / "o.gguf.part.journal").read_bytes().splitlines())
        ]

    def make(self, rng: Random) -> bytes:
        files = {"options": rng.choice(OPTIONS), "journal": self._journal(rng)}
        if rng.random() < 0.03:
            files["journal"] = rng.choice(FOREIGN) + rng.randbytes(rng.choice((0, 20, 5000)))
        if rng.random() < 0.15:
            files["patches"] = self._patches(rng)
        if rng.random() < 0.03:
            files["part"] = rng.choice(FOREIGN) + rng.randbytes(rng.choice((0, 20, 5000)))
            if rng.random() < 0.5:
                files["part"] = files["part"].ljust(len(self.part), b"x")
        return pack(files)

    def run(self, data: bytes) -> None:
        files = unpack(data)
        folder = self.work / "out"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        journal = _PLACE.sub(
            lambda place: self.values.get(place[0], b"?"), files.get("journal", b"")
        )
        journal = b"".join(map(marked, journal.splitlines(keepends=True)))
        part = files["part"] if "part" in files else self._patched(files.get("patches", b""))
        options = files.get("options", b"").split()
        out = folder / "o.gguf"
        if b"named" in options:
            out.write_bytes(self.whole)
        elif b"bare" not in options:
            out.with_name("o.gguf.part").write_bytes(part)
        out.with_name("o.gguf.part.journal").write_bytes(journal)
        if b"report" in options:
            (folder / "r.json").write_bytes(b"{}")
        kept = {path: path.read_bytes() for path in folder.iterdir()}
        report = folder / "r.json" if b"report" in options else None
        foreign = any(content.startswith(FOREIGN) for content in kept.values())
        try:
            self._quantize(self.valid / "in", out, report, options)
        except DotsError as error:
            check_words(error)
            if not foreign:
                self._quantize(self.valid / "in", out, report, [b"restart", b"named"])
        if not foreign:
            self._check_output(out, report)
        elif b"restart" not in options:  # which may throw away what is in the way
            _check_foreign(kept, len(self.part))

    def _check_output(self, out: Path, report: Path | None) -> None:
        if out.read_bytes() != self.whole:
            raise WrongResult("resuming gives another file than a run without interruption")
        if report:
            read_report(report)

    @staticmethod
    def _quantize(folder: Path, out: Path, report: Path | None, options: Sequence[bytes]) -> None:
        list(
            quantize_checkpoint(
                folder, out, TYPE, threads=1, report=report, restart=b"restart" in options,
                force=report is not None or b"named" in options,
            )
        )  # fmt: skip

    def _with_places(self, line: bytes, number: int) -> str:
        """A line of the journal, its hashes replaced by placeholders."""
        value = json.loads(line)
        if "identity" in value:
            for i, what in enumerate(value["identity"]):
                value["identity"][what] = self._place(f"@identity {i}@", value["identity"][what])
        if "sums" in value:
            tensor = value["tensor"]
            value["from"] = self._place(f"@from {tensor}@", value["from"])
            value["sums"] = [
                self._place(f"@sum {tensor} {i}@", sum_) for i, sum_ in enumerate(value["sums"])
            ]
        return json.dumps(value, separators=(",", ":"))

    def _place(self, name: str, value: str) -> str:
        self.values[name.encode()] = value.encode()
        return name

    def _journal(self, rng: Random) -> bytes:
        lines = [line.encode() for line in self.lines]
        if rng.random() < 0.2:
            lines.append(b'{"naming":true}')
        for _ in range(times(rng, 4)):
            lines = pick(rng, [(6, _line_spoiled), (1, _lines_moved), (1, _line_added)])(rng, lines)
        data = b"".join(b"@mark@ " + line + b"\n" for line in lines)
        return damaged(rng, data) if rng.random() < 0.1 else data

    def _patches(self, rng: Random) -> bytes:
        lines = [
            f"{rng.randrange(len(self.part))} {rng.randbytes(length(rng, 64)).hex()}"
            for _ in range(times(rng))
        ]
        if rng.random() < 0.3:
            lines.append(f"size {rng.choice((0, 1, len(self.part) - 1, len(self.part) + 1))}")
        return "\n".join(lines).encode()

    def _patched(self, patches: bytes) -> bytes:
        part = bytearray(self.part)
        for line in patches.splitlines():
            where, _, what = line.decode("ascii", "replace").partition(" ")
            if where == "size":
                part = bytearray(bytes(part).ljust(int(what), b"\0")[: int(what)])
            else:
                part[int(where) : int(where) + len(what) // 2] = bytes.fromhex(what)
        return bytes(part)


def _check_foreign(kept: Mapping[Path, bytes], part_nbytes: int) -> None:
    """What another program made is still there.

    A part of the right size is taken for ours, whatever it begins with, where our journal lies
    beside it: its first bytes may be the damage.
    """
    for path, data in kept.items():
        if path.suffix == ".part" and len(data) == part_nbytes:
            continue
        if data.startswith(FOREIGN) and (not path.exists() or path.read_bytes() != data):
            raise WrongResult(f"a file of another program is lost ({path.suffix[1:]})")


def marked(line: bytes) -> bytes:
    """A line with its checksum in the place of @mark@."""
    mark, _, text = line.partition(b" ")
    if mark != b"@mark@":
        return line
    digest = hashlib.blake2b(text.rstrip(b"\n"), digest_size=8).hexdigest()
    return digest.encode() + b" " + text


def _line_spoiled(rng: Random, lines: list[bytes]) -> list[bytes]:
    at = 0 if rng.random() < 0.1 else rng.randrange(len(lines))
    try:
        new = spoiled(rng, lines[at].decode(), HUGE_ONCE_IN)
    except (ValueError, RecursionError):  # it was spoiled before
        new = damaged(rng, lines[at])
    return [*lines[:at], new, *lines[at + 1 :]]


def _lines_moved(rng: Random, lines: list[bytes]) -> list[bytes]:
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(3):
        case 0:
            return [*lines[:first], *lines[first + 1 :]] or lines
        case 1:
            return [*lines[:first], lines[second], *lines[first:]]
        case _:
            return [*lines[:first], lines[second], *lines[first + 1 :]]


def _line_added(rng: Random, lines: list[bytes]) -> list[bytes]:
    sums = [rng.choice(("0" * 16, "-1", "0x1", "f" * 17, "١", "1_0"))] * rng.choice((1, 1, 2))
    errors = rng.choice(
        ([[0.5, 1.0]], [[-1.0, 1.0]], [[1e999, 0.0]], [None], [["a", "b"]], [[1]], 7)
    )
    tensor = rng.choice((0, 1, N_FINISHED, N_FINISHED + 1, number(rng), True, 1.0))
    line = {"tensor": tensor, "from": f"@from {tensor}@", "sums": sums, "errors": errors}
    return [*lines, json.dumps(line).encode()]


TARGET = Journal
