"""The terminal as a value: three streams, which of them are a terminal, how wide, what colours.

The only module that touches sys.stdin, sys.stdout and sys.stderr; everything that the package
prints goes through a `Terminal`, so a test hands in its own. stdout gets the answer, the table or
the JSON document that was asked for, stderr everything else. It knows nothing of models.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from dotscli.errors import DotsError, OutputError
from dotscli.terminal.descriptors import open_closed, to_nowhere
from dotscli.terminal.input import Input
from dotscli.terminal.progress import NoProgress, Progress
from dotscli.terminal.rich_text import table_text
from dotscli.terminal.text import COLOUR, NAMES, aligned, printable, wrapped

MAX_CLIPBOARD = 100_000  # bytes of base64: what xterm takes


class Terminal(Input):
    """Where a command reads from and writes to.

    `color` is auto, always or never; auto obeys NO_COLOR, FORCE_COLOR, TERM=dumb and whether the
    stream is a terminal. `quiet` silences notes and progress; warnings and errors remain.
    """

    def __init__(
        self,
        stdin: TextIO,
        stdout: TextIO,
        stderr: TextIO,
        *,
        environ: Mapping[str, str] | None = None,
        color: str = "auto",
        quiet: bool = False,
    ) -> None:
        super().__init__()
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.environ = os.environ if environ is None else environ
        self.color = color
        self.quiet = quiet
        self.stdin_is_tty = stdin.isatty()
        self.stdout_is_tty = stdout.isatty()
        self.stderr_is_tty = stderr.isatty()
        self.unread = False  # whoever read stdout has gone
        self._at_line_start = True
        self._shown: Progress = NoProgress()

    @classmethod
    def system(cls) -> Terminal:
        """The process's own streams: UTF-8 whatever the locale, newlines as they are."""
        open_closed()
        for stream, errors in ((sys.stdin, "replace"), (sys.stdout, NAMES), (sys.stderr, None)):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(encoding="utf-8", errors=errors or "backslashreplace", newline="")
        return cls(sys.stdin, sys.stdout, sys.stderr)

    @property
    def is_dumb(self) -> bool:
        """A terminal that can't move its cursor: no redrawn lines, no line editor."""
        return self.environ.get("TERM", "") in ("dumb", "unknown")

    @property
    def width(self) -> int:
        """Columns of the terminal, 80 where nobody knows; at least 20."""
        return max(20, shutil.get_terminal_size((80, 24)).columns)

    @property
    def height(self) -> int:
        """Rows of the terminal, 24 where nobody knows."""
        return max(2, shutil.get_terminal_size((80, 24)).lines)

    @property
    def draws(self) -> bool:
        """Whether what is on the screen of stdout can be drawn anew."""
        return self.stdout_is_tty and not self.is_dumb

    def colour(self, stream_is_tty: bool) -> bool:
        """Whether to use colour on a stream."""
        if self.color != "auto":
            return self.color == "always"
        if self.environ.get("NO_COLOR"):
            return False
        if self.environ.get("FORCE_COLOR", "0") not in ("", "0"):
            return True
        return stream_is_tty and not self.is_dumb

    # -- stdout: the answer -------------------------------------------------------------------

    def write(self, text: str) -> None:
        """A part of the answer, at once; byte for byte into a pipe, inert on a terminal.

        Raises:
            BrokenPipeError: nobody reads it any more; `unread` is True then.
            OutputError: it can't be written, e.g. because the disk is full.
        """
        if text:
            self._at_line_start = text.endswith("\n")
            self._put(printable(text) if self.stdout_is_tty else text)

    def paint(self, text: str) -> None:
        """Text with colours or moves of the cursor; the caller has made the rest printable."""
        if visible := COLOUR.sub("", text):
            self._at_line_start = visible.endswith("\n")
        self._put(text)

    def _put(self, text: str) -> None:
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except OSError as error:
            # What is still buffered would fail again when Python closes the stream.
            to_nowhere(self.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                self.unread = True
                raise
            reason = error.strerror or str(error)
            raise OutputError(f"the output can't be written: {reason}") from error

    def clipboard(self, text: str) -> str:
        """Ask the terminal to put a text on the clipboard (OSC 52); what there is to say.

        Raises:
            DotsError: it is no terminal that could, or the text is too long for any.
        """
        data = base64.b64encode(text.encode("utf-8", "replace"))
        if not self.stdout_is_tty or self.is_dumb:
            raise DotsError("there is no terminal here with a clipboard")
        if len(data) > MAX_CLIPBOARD:
            raise DotsError(f"{len(text):,} characters are too many for a terminal's clipboard")
        self._put(f"\x1b]52;c;{data.decode()}\x07")
        return f"copied {len(text):,} characters, if the terminal allows it"

    def end_line(self) -> None:
        """End the answer's last line unless it has ended."""
        if not self._at_line_start:
            self.write("\n")

    def interrupted(self) -> None:
        """Ctrl-C was pressed: the terminal has shown it as ^C, so the line isn't empty."""
        if self._echoes and self.stdin_is_tty and self.stdout_is_tty:
            self._at_line_start = False

    def json(self, value: object) -> None:
        """One JSON document; what is no UTF-8 in a file name becomes JSON's escapes."""
        text = json.dumps(value, ensure_ascii=False, indent=2 if self.stdout_is_tty else None)
        self.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
    ) -> None:
        """A table on stdout: on a terminal no wider than that, elsewhere never wrapped or cut.

        Args:
            columns: their titles.
            rows: one text per column.
            right: the columns that are aligned to the right.
        """
        colour = self.colour(self.stdout_is_tty)
        if self.stdout_is_tty:
            inert = [[printable(cell) for cell in row] for row in rows]
            self.paint(table_text(columns, inert, right, width=self.width, colour=colour))
            return
        for n, line in enumerate(aligned(columns, rows, right)):
            if n == 0 and colour:
                self._put(f"\x1b[1m{line}\x1b[0m\n")
            else:
                self.write(line + "\n")

    def paragraph(self, text: str, label: str = "") -> None:
        """A sentence behind a label; on a terminal wrapped, where it is narrow below the label."""
        if not self.stdout_is_tty:
            self.write(f"{label}{text}\n")
            return
        indent = " " * len(label)
        if len(label) > self.width // 3 and label.strip():
            self.write(f"{label.rstrip()}\n")
            label = indent = "  "
        self.write(wrapped(text, self.width, label, indent) + "\n")

    def styled(self, parts: Sequence[tuple[str, str]]) -> None:
        """Texts with the colour of each (SGR, "" for none), where stdout has colours."""
        colour = self.colour(self.stdout_is_tty)
        for text, style in parts:
            self._at_line_start = text.endswith("\n")
            self._put(f"\x1b[{style}m{printable(text)}\x1b[0m" if colour and style else text)

    # -- stderr: everything else --------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line for the person at the terminal; silent with --quiet."""
        if not self.quiet:
            self._say(text, "2")

    def warn(self, text: str) -> None:
        """One `warning:` line."""
        self._say(f"warning: {text}", "33")

    def error(self, message: str, hint: str = "") -> None:
        """One `error:` line and, if there is a hint, one `hint:` line."""
        self._say(f"error: {' '.join(message.split())}", "31")
        if hint:
            self._say(f"hint: {' '.join(hint.split())}", "36")

    def last_words(self, message: str, hint: str = "") -> None:
        """The error with which the process ends on the spot, its context managers left open."""
        self._give_keys_back()
        self.error(message, hint)

    def _say(self, text: str, style: str) -> None:
        self._shown.erase()  # a progress line would stay before the text; it is drawn anew
        if self.stdout_is_tty and self.stderr_is_tty:
            self.end_line()  # both are one screen: never in the middle of the answer's line
        text = printable(text)
        if self.stderr_is_tty and not self.is_dumb:
            text = "\n".join(wrapped(line, self.width) for line in text.split("\n"))
        if self.colour(self.stderr_is_tty):
            text = f"\x1b[{style}m{text}\x1b[0m"
        self.put_err(text + "\n")

    def say(self, text: str) -> None:
        """Text that was asked for and still belongs on stderr, as it is."""
        self.put_err(text + "\n")

    def put_err(self, text: str) -> None:
        """Write to stderr; where that fails, what belongs there is lost and the work goes on."""
        try:
            self.stderr.write(text)
            self.stderr.flush()
        except OSError:
            to_nowhere(self.stderr.fileno())

    def progress(self, label: str, total: float, unit: str = "") -> Progress:
        """Shows how far a piece of work is; `with terminal.progress(...) as p: p.update(done)`."""
        if self.quiet:
            return NoProgress()

        redraw = self.stderr_is_tty and not self.is_dumb
        self._shown = Progress(
            label, total, unit, write=self.put_err, redraw=redraw, width=lambda: self.width,
            colour=self.colour(self.stderr_is_tty),
        )  # fmt: skip
        return self._shown
