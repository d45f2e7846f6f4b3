"""A long chat at a real terminal, recorded: what the screen shows at 80 x 24 and 200 x 50.

    python -m bench.answer.recording     # writes docs/terminal-80x24.txt and its like

tmux is the terminal. The nano model answers; where it is to write a table, code or something
without an end, a grammar makes it. Nothing is timed, and the captures are for people to look at.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from bench.lib.measure import ROOT, dots, dots_env, note

SIZES = ((80, 24), (200, 50))
TABLE = (
    '"# Two commands\\n\\n| command | what it does |\\n|---|---|\\n'
    "| `dots quantize` | makes a **GGUF** |\\n| `dots chat` | 对话 |\\n\\n"
    "- one\\n- two: 中文\\n\\n> said\\n\\n```python\\ndef double(x):\\n"
    '    return 2 * x  # a comment\\n```\\n\\nThat is all."'
)
ENDLESS = '"word " root'
PASTED = "\n".join(f"line {n} of something that was pasted" for n in range(40))
LONG = "Tell me what dots is. " * 70


class Screen:
    """A tmux session, and what has been captured of it."""

    def __init__(self, columns: int, rows: int, folder: str) -> None:
        self.name = f"dots-recording-{columns}"
        self.parts: list[str] = []
        places = {"XDG_STATE_HOME": folder, "DOTS_THREADS": "1", **dots_env()}
        env = [word for key, value in places.items() for word in ("-e", f"{key}={value}")]
        self._tmux("kill-session", "-t", self.name, check=False)
        size = ("-x", str(columns), "-y", str(rows))
        self._tmux("new-session", "-d", "-s", self.name, *size, *env, "/bin/sh")
        self.run("PS1='(shell) '; clear")

    def _tmux(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(["tmux", *words], capture_output=True, text=True, check=check)
        return done.stdout

    def run(self, line: str) -> None:
        """Type a line and Enter."""
        self._tmux("send-keys", "-t", self.name, "-l", line)
        self.key("Enter")

    def key(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        self._tmux("send-keys", "-t", self.name, *keys)

    def paste(self, text: str) -> None:
        """As a terminal pastes: in brackets."""
        self._tmux("set-buffer", "-b", self.name, text)
        self._tmux("paste-buffer", "-p", "-d", "-b", self.name, "-t", self.name)

    def shown(self) -> str:
        """The screen as it is, without blank rows at its end."""
        return self._tmux("capture-pane", "-p", "-t", self.name).rstrip("\n")

    def wait(self, text: str, timeout: float = 60.0) -> None:
        """Until the screen shows it."""
        end = time.monotonic() + timeout
        while text not in self.shown():
            if time.monotonic() > end:
                raise SystemExit(f"no {text!r} on the screen:\n{self.shown()}")
            time.sleep(0.05)

    def keep(self, title: str) -> None:
        """Capture what is there, once it stays as it is."""
        before = ""
        while before != (before := self.shown()):
            time.sleep(0.4)
        self.parts.append(f"{title}\n{'-' * len(title)}\n{before}\n")

    def keep_now(self, title: str) -> None:
        """Capture what is there while it changes."""
        self.parts.append(f"{title}\n{'-' * len(title)}\n{self.shown()}\n")

    def clear(self) -> None:
        """Ctrl-L: the line editor begins at the top."""
        self.key("C-l")
        time.sleep(0.3)

    def close(self) -> None:
        self._tmux("kill-session", "-t", self.name, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    for columns, rows in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            screen = Screen(columns, rows, folder)
            try:
                _tour(screen)
            finally:
                screen.close()
        path = options.folder / f"terminal-{columns}x{rows}.txt"
        text = "\n".join(screen.parts).replace(folder, "$XDG_STATE_HOME")
        path.write_text(text, encoding="utf-8")
        note(f"wrote {path}")


def _tour(screen: Screen) -> None:
    command = shlex.join(dots())

    def chat(words: str) -> None:
        screen.run(f"clear; {command} chat -c 2048 {words}")
        screen.wait("/help lists the commands")
        screen.wait(">>>")

    def leave() -> None:
        screen.run("/exit")
        screen.wait("(shell)")

    chat("--session tour --temp 0")
    screen.run("What is dots?")
    screen.wait("seed ")
    screen.run("中国的首都是哪里？")
    screen.wait("北京")
    screen.keep("Two questions, one of them in Chinese")
    screen.clear()
    screen.run("look at this:\\")
    screen.paste(PASTED)
    screen.wait("40 lines]")
    screen.keep("A paste of 40 lines, before it is sent")
    screen.key("Enter")
    screen.wait("seed ")
    screen.run("/ctx")
    screen.wait("are the most here")
    screen.keep("Its answer, and how full the context is")
    screen.clear()
    screen.run("/fork 1")
    time.sleep(0.5)
    screen.run("/sessions")
    screen.wait("What is dots?")
    screen.keep("A fork, and the list of conversations")
    leave()

    chat(f"--no-save --markdown --grammar {shlex.quote('root ::= ' + TABLE)}")
    screen.run("Which commands are there?")
    screen.wait("That is all.")
    screen.wait("seed ")
    screen.keep("A table, a list, a quotation and code")
    screen.run("/raw")
    screen.wait("> said")
    screen.keep("The same as the model has written it")
    leave()

    chat(f"--session long --grammar {shlex.quote('root ::= ' + ENDLESS)} -n 1500 --markdown")
    screen.run("Talk.")
    screen.wait("word word")
    time.sleep(0.5)
    screen.keep_now("An answer while it comes")
    screen.key("C-c")
    screen.wait("the partial answer is kept")
    screen.keep("Ctrl-C in an answer")
    screen.clear()
    screen.paste(LONG * 3)
    screen.key("Enter")
    time.sleep(0.2)
    screen.key("C-c")
    screen.wait("withdrawn")
    screen.keep("Ctrl-C while a prompt is read")
    screen.clear()
    screen.run("Again.")
    screen.wait("word word")
    subprocess.run(["pkill", "-9", "-f", "chat -c 2048 --session long"], check=False)
    screen.wait("(shell)")
    screen.key("stty sane", "C-j")  # a line editor would have done that; this shell has none
    time.sleep(0.3)
    chat("--continue --temp 0")
    screen.keep("kill -9 in the middle of an answer, and --continue")
    screen.clear()
    screen.run("/clear")
    screen.paste(LONG)
    screen.key("Enter")
    screen.wait("seed ")
    leave()
    chat("--continue --temp 0")
    screen.run("And?")
    screen.wait("seed ")
    screen.run("/stats")
    screen.wait(" reused)")
    screen.keep("The next day: nothing is read again")
    leave()


if __name__ == "__main__":
    main()
