"""The commands of a conversation: what a line means, and what it does to the conversation.

`parse` tells text from commands; `execute` runs one and returns what there is to say. It knows no
terminal and reads no keys.
"""

from __future__ import annotations

from dotscli.conversation.answer import short, stats_line
from dotscli.conversation.code_block import first_code_block
from dotscli.conversation.conversation import Conversation
from dotscli.conversation.journal import Journal
from dotscli.conversation.outcome import Command, Outcome
from dotscli.conversation.slash_sessions import session_command
from dotscli.conversation.slash_settings import (
    ctx_command,
    model_command,
    set_command,
    show_command,
    system_command,
)
from dotscli.errors import DotsError

# name -> (arguments, what it does); in the order of /help.
COMMANDS: dict[str, tuple[str, str]] = {
    "/help": ("", "this list"),
    "/exit": ("", "leave; also /bye, /quit and Ctrl-D"),
    "/clear": ("", "forget every turn; the system prompt stays"),
    "/regen": ("", "answer the last question again"),
    "/undo": ("", "take back the last question and its answer"),
    "/drop": ("", "forget the oldest question and its answer, to make room"),
    "/summarise": ("", "put a summary in the place of the oldest turns, once you have seen it"),
    "/ctx": ("[TOKENS]", "how full the context is; or load again with a longer one, e.g. /ctx 16k"),
    "/model": ("[MODEL]", "show the model, or go on with another one"),
    "/system": ("[TEXT]", "show the system prompt, or set it; `none` removes it"),
    "/set": ("[NAME VALUE]", "change a setting for the next answers, e.g. /set temp 0.2"),
    "/show": ("[WHAT]", "show info, params, template or system"),
    "/stats": ("[on|off]", "statistics of the last answer; `on` shows them after each"),
    "/file": ("[PATH]", "send a file with the next message; alone: list them; `none`: forget them"),
    "/glob": ("PATTERN", "the same with every file that matches, such as src/**/*.py"),
    "/raw": ("[on|off]", "the last answer as it was written; `on` draws no Markdown from now on"),
    "/copy": ("[code]", "put the last answer, or its first code block, on the clipboard"),
    "/edit": ("[TEXT]", "change the last question and answer it again"),
    "/save": ("[NAME]", "give this conversation a name, or show the one it has"),
    "/load": ("NAME", "go on with another conversation"),
    "/fork": ("[N]", "go on in a copy of this conversation, of its first N questions"),
    "/sessions": ("", "list the saved conversations"),
}
ALIASES = {
    "/bye": "/exit", "/quit": "/exit", "/?": "/help", "/regenerate": "/regen",
    "/summarize": "/summarise", "/compact": "/summarise",
}  # fmt: skip


def parse(line: str) -> Command | str:
    """The command of a line, or the text to send; `//` at the beginning stands for one slash.

    Raises:
        DotsError: a command that doesn't exist; it must never reach the model.
    """
    if line.startswith("//"):
        return line[1:]
    if not line.startswith("/"):
        return line
    name, _, argument = line.strip().partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        similar = [known for known in COMMANDS if name != "/" and known.startswith(name[:3])]
        known = " or ".join(similar) + "; " if similar else ""
        raise DotsError(
            f"unknown command {name.splitlines()[0]}",
            hint=f"{known}/help lists them; start with // to send text that begins with a slash",
        )
    return Command(name, argument.strip())


def execute(
    conversation: Conversation, command: Command, journal: Journal | None = None
) -> Outcome:
    """Run a command.

    Args:
        journal: where the conversation is saved, None for nowhere.

    Raises:
        DotsError: a wrong argument; nothing has changed then.
    """
    argument = command.argument
    match command.name:
        case "/help":
            return Outcome(help_text())
        case "/exit":
            return Outcome(action="exit")
        case "/clear":
            conversation.clear()
            return Outcome("The conversation is empty.")
        case "/regen":
            return Outcome(action="regenerate")
        case "/undo":
            done = conversation.undo()
            return Outcome("The last turn was removed." if done else "There is nothing to undo.")
        case "/drop":
            done = conversation.drop()
            return Outcome("The oldest turn was removed." if done else "There is nothing to drop.")
        case "/system":
            return system_command(conversation, argument)
        case "/set":
            return set_command(conversation, argument)
        case "/show":
            return show_command(conversation, argument)
        case "/ctx":
            return ctx_command(conversation, argument)
        case "/model":
            return model_command(conversation, argument)
        case "/summarise":
            return Outcome(action="summarise")
        case "/edit":
            if not argument:
                conversation.last_question  # noqa: B018  raises where there is none
            return Outcome(action="edit", argument=argument)
        case "/file":
            return Outcome(action="file", argument=argument)
        case "/glob":
            if not argument:
                raise DotsError("/glob needs a pattern", hint="for instance: /glob src/**/*.py")
            return Outcome(action="glob", argument=argument)
        case "/raw":
            return _raw(conversation, argument)
        case "/copy":
            return Outcome(action="copy", argument=_to_copy(conversation, argument))
        case "/save" | "/load" | "/fork" | "/sessions":
            return Outcome(session_command(conversation, journal, command.name, argument))
        case _:
            return _stats(conversation, argument)


def _last_answer(conversation: Conversation) -> str:
    answers = [turn.content for turn in conversation.turns if turn.role == "assistant"]
    if not answers:
        raise DotsError("there has been no answer yet")
    return answers[-1]


def _raw(conversation: Conversation, argument: str) -> Outcome:
    if argument in ("on", "off"):
        how = "as the model writes them" if argument == "on" else "with their Markdown drawn"
        return Outcome(f"Answers are shown {how}.", markdown=argument == "off")
    if argument:
        raise DotsError(f"unknown: /raw {argument[:40]}", hint="/raw, /raw on or /raw off")
    return Outcome(action="raw", argument=_last_answer(conversation))


def _to_copy(conversation: Conversation, what: str) -> str:
    if what not in ("", "code"):
        raise DotsError(f"unknown: /copy {what[:40]}", hint="/copy or /copy code")
    answer = _last_answer(conversation)
    text = first_code_block(answer) if what else answer
    if text is None:
        raise DotsError("the last answer has no code block", hint="/copy copies all of it")
    return text


def help_text() -> str:
    """The list of commands and how to type more than a line."""
    rows = [(f"{name} {arguments}".strip(), what) for name, (arguments, what) in COMMANDS.items()]
    width = max(len(left) for left, _ in rows)
    lines = [f"{left:{width}}  {what}" for left, what in rows]
    lines += [
        "",
        "Enter sends; Alt-Enter, Ctrl-J or a \\ at the end of a line starts a new one,",
        'and everything between two """ is one message. Ctrl-C stops an answer.',
    ]
    return "\n".join(lines)


def _stats(conversation: Conversation, argument: str) -> Outcome:
    if argument in ("on", "off"):
        return Outcome(f"Statistics after each answer: {argument}.", stats=argument == "on")
    if argument:
        raise DotsError(f"unknown: /stats {argument}", hint="/stats, /stats on or /stats off")
    if conversation.last_seed < 0:
        return Outcome("There has been no answer yet.")
    engine = conversation.engine
    return Outcome(stats_line(engine.stats, n_ctx=engine.n_ctx, seed=conversation.last_seed))


def gauge(conversation: Conversation) -> str:
    """How full the context is: `ctx 1.6k/8k`."""
    return f"ctx {short(conversation.n_tokens)}/{short(conversation.engine.n_ctx)}"
