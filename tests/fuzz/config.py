"""config.toml: read by itself, and as the defaults of commands that fail for lack of a file."""

from __future__ import annotations

from random import Random

import typer

from dotscli.cli.app import app, run
from dotscli.options.config_file import read_config
from tests.fuzz.mutate import damaged, length, number, real, text
from tests.fuzz.target import Target, WrongResult, refusals, silent_terminal

COMMANDS = {
    "quantize": ("quantize", "/nonexistent"),
    "verify": ("verify", "/nonexistent"),
    "calibrate": ("calibrate", "/nonexistent", "-f", "/nonexistent"),
    "prompt": ("prompt", "-m", "/nonexistent", "hello"),
    "chat": ("chat", "-m", "/nonexistent"),
    "plan": ("plan", "/nonexistent"),
    "inspect": ("inspect", "/nonexistent"),
}
MAX_NBYTES = 4 << 20
RUN_ONCE_IN = 8  # a whole command takes far longer than reading


class Config(Target):
    """A file of options for all commands and of tables for some."""

    def open(self) -> None:
        command = typer.main.get_command(app)
        self.options = {
            name: {
                spelling[2:].replace("-", "_"): str(parameter.name)
                for parameter in command.commands[name].params  # type: ignore[attr-defined]
                for spelling in parameter.opts
                if spelling.startswith("--")
            }
            for name in COMMANDS
        }
        self.path = self.work / "dots" / "config.toml"
        self.path.parent.mkdir()

    def make(self, rng: Random) -> bytes:
        lines = []
        for _ in range(rng.randrange(1, 12)):
            name = rng.choice(list(COMMANDS))
            if rng.random() < 0.3:
                lines.append(_table(rng, name))
            option = rng.choice(list(self.options[name])).replace("_", rng.choice("-_"))
            lines.append(f"{_key(rng, option)} = {_value(rng)}")
        if rng.random() < 0.1:
            lines *= length(rng, 1 << 10)
        data = "\n".join(lines).encode("utf-8", "surrogatepass")[:MAX_NBYTES]
        return damaged(rng, data) if rng.random() < 0.2 else data

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        with refusals():
            read_config(self.path, self.options)
        if len(data) % RUN_ONCE_IN == 0:
            for words in COMMANDS.values():
                terminal, shown = silent_terminal(
                    XDG_CONFIG_HOME=str(self.work), XDG_CACHE_HOME=str(self.work)
                )
                status = run(words, terminal)
                if status not in (1, 2):
                    raise WrongResult(f"a command without a file succeeds: {status}")
                if not shown.getvalue():
                    raise WrongResult("a command fails without a word")


def _table(rng: Random, name: str) -> str:
    return rng.choice(
        (f"[{name}]", f"[[{name}]]", f"[{name}.x]", f'["{name}"]', "[nonsense]", "[]", f"[{name}")
    )


def _key(rng: Random, option: str) -> str:
    return rng.choice(
        (
            option, option, option, option, option, f'"{option}"', f"{option}.x", "nonsense", "''",
            "a." * length(rng, 1 << 17) + "b", "[" * length(rng, 1 << 12), '"' + text(rng) + '"',
        )
    )  # fmt: skip


def _value(rng: Random, depth: int = 0) -> str:
    match rng.randrange(14 if depth < 3 else 8):
        case 0 | 1:
            return str(number(rng))
        case 2:
            return repr(real(rng))
        case 3 | 4:
            return '"' + text(rng).replace("\\", "").replace('"', "") + '"'
        case 5:
            return rng.choice(
                ("true", "false", "1e400", "0x_1", "1979-05-27T07:32:00Z", "07:32:00")
            )
        case 6:
            return rng.choice(
                ("'''a'''", '"""\n"""', "+1", "1_000", "0o7", "9" * 5000, "''", '"\\ud800"')
            )
        case 7:
            return rng.choice(
                ('"auto"', '"off"', '"q4"', '"1M"', '"always"', '"24G"', '"f16"', '"-1"')
            )
        case 8:
            return "[" + ", ".join(_value(rng, depth + 1) for _ in range(rng.randrange(4))) + "]"
        case 9:
            pairs = (f"k{i} = {_value(rng, depth + 1)}" for i in range(rng.randrange(3)))
            return "{" + ", ".join(pairs) + "}"
        case 10:
            n = length(rng, 1 << 17)
            return "[" * n + "1" + "]" * n
        case 11:
            n = length(rng, 1 << 15)
            return "{a=" * n + "1" + "}" * n
        case 12:
            return "[" + "1," * length(rng, 1 << 16) + "]"
        case _:
            return "{" + ".".join(["a"] * length(rng, 1 << 14)) + " = 1}"


TARGET = Config
