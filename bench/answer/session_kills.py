"""Two hundred kills of `dots chat`, each at a random moment: what was shown is on the disk.

    python -m bench.answer.session_kills --kills 200

A chat with the nano model at a terminal gets one question after the other and SIGKILL in between:
while it loads, reads, answers or saves. Every answer that had ended on the screen must be complete
in the session, and of the one that was on its way everything that the screen had shown.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import tempfile
import time
from pathlib import Path

from bench.lib.measure import note
from dotscli.conversation.sessions import Sessions
from tests.transcript import Terminals, on_a_terminal, plain

QUESTIONS = ("What is dots?", "What is 23 + 45?", "中国的首都是哪里？", "Tell me a story.")
LONGEST_S = 2.0  # from the first prompt to the kill
END = re.compile(r"\d+ tok .*prefill")
PER_SESSION = 8  # kills of one conversation, before the context is full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    n_answers = n_broken = n_lost = 0
    with tempfile.TemporaryDirectory() as state:
        for kill in range(options.kills):
            name = f"s{kill // PER_SESSION}"
            done, shown = _one(state, name, rng)
            path = Path(state) / "dots/sessions"
            sessions = Sessions(path)
            found = sessions.read(name).state if sessions.path(name).exists() else None
            turns = found.turns if found else []
            complete = [turn for turn in turns if turn.role == "assistant" and turn.complete]
            before = KNOWN.get(name, 0)
            if len(complete) < before + done or (found and found.damaged):
                n_lost += 1
                note(f"kill {kill}: {done} answers ended, {len(complete) - before} are there")
            KNOWN[name] = len(complete)
            last = turns[-1] if turns else None
            n_answers += done
            if last is not None and not last.complete:
                n_broken += 1
                if not _same(last.content, shown):
                    n_lost += 1
                    note(f"kill {kill}: shown {shown!r}, kept {last.content!r}")
    print(
        f"{options.kills} kills, {n_answers} answers ended before one, {n_broken} were broken off: "
        f"{n_lost} lost anything that had been shown"
    )
    raise SystemExit(n_lost > 0)


KNOWN: dict[str, int] = {}


def _one(state: str, name: str, rng: random.Random) -> tuple[int, str]:
    """One chat and its end: the answers that had ended, and the text of the one on its way."""
    words = ("chat", "--session", name, "--temp", "0", "-c", "8192", "--no-markdown")
    with on_a_terminal(*words, XDG_STATE_HOME=state, NO_COLOR="1") as screen:
        screen.wait_for(">>>")
        end = time.monotonic() + rng.uniform(0, LONGEST_S)
        screen.seen, question, n_done = "", "", 0
        while time.monotonic() < end:
            question = rng.choice(QUESTIONS)
            screen.type(question + "\r")
            if not _answered(screen, end):
                break
            n_done += 1
            screen.seen, question = "", ""
        screen.process.send_signal(signal.SIGKILL)
        screen.wait()
        text = plain(screen.seen)
        n_done += question != "" and END.search(text) is not None
        return n_done, text


def _answered(screen: Terminals, end: float) -> bool:
    """Read the screen until an answer has ended and the next line may be typed, or time is up."""
    while time.monotonic() < end:
        screen._read(min(end, time.monotonic() + 0.01))
        text = plain(screen.seen)
        ended = END.search(text)
        if ended and ">>>" in text[ended.end() :]:
            return True
    return False


def _same(kept: str, shown: str) -> bool:
    """Whether the screen ends with a beginning of what was kept: it has shown no more than that.

    Spaces and line ends don't count, since the screen wraps; nor does an answer of which it has
    shown nothing yet, so that it ends with the question.
    """
    ours, theirs = "".join(kept.split()), "".join(shown.split())
    asked = tuple("".join(question.split()) for question in QUESTIONS)
    return theirs.endswith(asked) or any(
        theirs.endswith(ours[:length]) for length in range(len(ours), 0, -1)
    )


if __name__ == "__main__":
    main()
