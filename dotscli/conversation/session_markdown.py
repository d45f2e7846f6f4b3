"""A conversation as Markdown: what was asked as quotes, what was answered as it is."""

from __future__ import annotations

from dotscli.conversation.session_log import Replayed


def markdown(name: str, state: Replayed) -> str:
    """The whole conversation, ending with a newline."""
    parts = [f"# {name}", f"Begun {state.header.created} with `{state.header.model}`."]
    if state.system:
        parts += ["## System prompt", _quoted(state.system)]
    for turn in state.turns:
        if turn.role == "user":
            parts += ["## Question", _quoted(turn.content)]
        else:
            parts.append(turn.content.strip("\n"))
            if not turn.complete:
                parts.append("*(broken off)*")
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
