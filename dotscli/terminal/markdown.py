"""Markdown for a terminal, block by block: which blocks have ended, and the rows of one.

markdown-it finds the blocks and rich draws them. What both would leave out or run together stays:
HTML (`List<String>` is none), images, link definitions, backslashes (LaTeX), line ends within a
paragraph (a poem). Code at the outer level isn't wrapped, so that what is copied is what was
written. It knows no terminal but its width.
"""

from __future__ import annotations

import functools
import io
import re
from typing import TYPE_CHECKING, Any

from dotscli.terminal.text import COLOUR

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from rich.console import Console, RenderableType

MAX_BLOCK = 20_000  # characters; a longer block is shown as it was written
_SPACES = re.compile(r"[ \t]+((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)
_FENCE_END = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*\n?$")


def split_blocks(text: str) -> list[str]:
    """The outermost blocks of a text, each without blank lines around it."""
    lines = text.split("\n")
    starts = _starts(text)
    pairs = zip(starts, [*starts[1:], len(lines)], strict=False)  # none without a block
    return ["\n".join(lines[first:end]).rstrip() for first, end in pairs]


def ended(text: str) -> tuple[list[str], str]:
    """The blocks that nothing behind them can change any more, and the text of the open one.

    A block has ended when a line of another has; a line counts once it is whole.
    """
    whole = text[: text.rfind("\n") + 1]
    starts = _starts(whole)
    if len(starts) < 2:
        return [], text
    lines = text.split("\n")
    return split_blocks("\n".join(lines[: starts[-1]])), "\n".join(lines[starts[-1] :])


def _starts(text: str) -> list[int]:
    """The lines that the outermost blocks begin with."""
    return sorted({token.map[0] for token in _tokens(text) if token.level == 0 and token.map})


def block_rows(block: str, width: int, colour: bool) -> list[str]:
    """One block as lines with colours, none of them with spaces at its end.

    Lines are at most `width` columns, but for code and for what can't be drawn.
    """
    if len(block) > MAX_BLOCK:
        return block.split("\n")
    try:
        tokens = _tokens(block)
        drawn = _drawn(tokens, width, colour)
    except Exception:
        return block.split("\n")
    if _n_letters(COLOUR.sub("", drawn)) < _n_letters(_text(tokens)):
        return block.split("\n")  # a table of more columns than there is room for
    rows = [line.expandtabs(4) for line in _SPACES.sub(r"\1", drawn).split("\n")]
    seen = [n for n, row in enumerate(rows) if COLOUR.sub("", row)]
    return rows[seen[0] : seen[-1] + 1] if seen else [""]


def _n_letters(text: str) -> int:
    return sum(character.isalnum() for character in text)


def _text(tokens: list[Token]) -> str:
    """What of them is to be read."""
    inner = [child for token in tokens for child in token.children or ()]
    kinds = ("text", "code_inline", "fence", "code_block")
    return "".join(token.content for token in (*tokens, *inner) if token.type in kinds)


def _drawn(tokens: list[Token], width: int, colour: bool) -> str:
    console = _console(width, colour)
    if len(tokens) == 1 and tokens[0].type in ("fence", "code_block"):
        console.print(_code(tokens[0].content, tokens[0].info), soft_wrap=True)
    else:
        console.print(_markdown(tokens), end="")
    file: Any = console.file
    return str(file.getvalue())


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    found = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return found.disable(["html_block", "html_inline", "image", "reference", "escape"])


def _tokens(text: str) -> list[Token]:
    return _parser().parse(text)


def _console(width: int, colour: bool) -> Console:
    from rich.console import Console
    from rich.theme import Theme

    plain = {"markdown.code": "cyan", "markdown.block_quote": "italic", "markdown.link": "blue"}
    headings = {f"markdown.h{n}": "bold magenta" for n in range(1, 7)}
    return Console(
        file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False,
        color_system="standard" if colour else None, no_color=not colour, highlight=False,
        markup=False, emoji=False, theme=Theme({**plain, **headings}), _environ={},
    )  # fmt: skip


def _code(content: str, info: str) -> RenderableType:
    """Code in the terminal's own colours, without a background that would be copied."""
    from rich.syntax import Syntax

    language = info.split(maxsplit=1)[0] if info.split() else "text"
    syntax = Syntax("", language, theme="ansi_dark", background_color="default")
    text = syntax.highlight(content)
    text.rstrip()
    text.no_wrap = None
    return text


@functools.cache
def _classes() -> type:
    from rich.console import ConsoleOptions, RenderResult
    from rich.markdown import CodeBlock, Heading, Markdown, TableElement
    from rich.table import Table

    class Code(CodeBlock):
        """Code within a list or a quotation: wrapped, for it has to stay indented."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            yield _code(str(self.text), self.lexer_name)

    class Title(Heading):
        """A heading at the left."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            self.text.justify = "left"
            yield self.text

    class Rows(TableElement):
        """A table whose cells are wrapped, never cut: Chinese has no spaces to break at."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for part in super().__rich_console__(console, options):
                for column in part.columns if isinstance(part, Table) else ():
                    column.overflow = "fold"
                yield part

    class Answer(Markdown):
        """Markdown from tokens that are there already."""

        def __init__(self, tokens: list[Token]) -> None:
            super().__init__("", hyperlinks=False)
            self.parsed = tokens

    own = {"fence": Code, "code_block": Code, "heading_open": Title, "table_open": Rows}
    Answer.elements = {**Markdown.elements, **own}
    return Answer


def _markdown(tokens: list[Token]) -> RenderableType:
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    found: RenderableType = _classes()(tokens)
    return found
