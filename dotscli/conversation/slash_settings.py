"""The commands of a conversation that show and change how it is answered: /system, /set, /show,
/ctx and /model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dotscli.conversation import room
from dotscli.conversation.conversation import Conversation
from dotscli.conversation.outcome import Outcome
from dotscli.engine.sampling import Sampling, check_n_predict
from dotscli.engine.stream import check_stop
from dotscli.errors import DotsError
from dotscli.terminal.text import format_bytes

LIMITS = ("n", "stop")
SHORTEST_CTX = 256  # tokens


def system_command(conversation: Conversation, argument: str) -> Outcome:
    if not argument:
        return Outcome(conversation.system or "There is no system prompt.")
    conversation.system = "" if argument == "none" else argument
    return Outcome("The system prompt is set." if conversation.system else "No system prompt.")


def _params(conversation: Conversation) -> str:
    values: dict[str, object] = dataclasses.asdict(conversation.sampling)
    grammar = values.pop("grammar")
    values |= {"n": conversation.n_predict, "stop": " ".join(map(repr, conversation.stop)) or "-"}
    if grammar:
        values["grammar"] = "set"
    return "\n".join(f"{name.replace('_', '-'):18} {value}" for name, value in values.items())


def set_command(conversation: Conversation, argument: str) -> Outcome:
    name, _, value = argument.partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if not name:
        return Outcome(_params(conversation))
    if name == "system":
        return system_command(conversation, value)
    fields = {f.name: f.default for f in dataclasses.fields(Sampling) if f.name != "grammar"}
    name = {"n_predict": "n", "max_tokens": "n", "temperature": "temp"}.get(name, name)
    if name not in fields and name not in LIMITS:
        known = ", ".join(n.replace("_", "-") for n in (*fields, *LIMITS))
        raise DotsError(f"unknown setting {name}", hint=f"settings: {known}, system")
    if not value:
        raise DotsError(f"/set {name} needs a value", hint="/show params lists the current values")
    if name == "stop":
        stop = () if value == "none" else (value,)
        check_stop(stop)
        conversation.stop = stop
    elif name == "n":
        n_predict = int(_number(name, value, whole=True))
        check_n_predict(n_predict)
        conversation.n_predict = n_predict
    else:
        change: Any = {name: _number(name, value, whole=isinstance(fields[name], int))}
        conversation.sampling = dataclasses.replace(conversation.sampling, **change)
    return Outcome(f"{name.replace('_', '-')} is {value} from now on.")


def _number(name: str, value: str, whole: bool) -> float | int:
    try:
        return int(value) if whole else float(value)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise DotsError(f"invalid {name} {value[:40]!r}", hint=f"give {kind}") from None


def show_command(conversation: Conversation, argument: str) -> Outcome:
    engine = conversation.engine
    match argument or "info":
        case "info":
            asked = len(conversation.asked)
            return Outcome(
                f"model    {engine.path}\n"
                f"context  {conversation.n_tokens:,} of {engine.n_ctx:,} tokens used "
                f"(the model was trained on {engine.n_ctx_train:,})\n"
                f"turns    {asked}\n"
                f"template {'of the model' if engine.chat_template else 'built in'}"
            )
        case "params":
            return Outcome(_params(conversation))
        case "template":
            return Outcome(conversation.template)
        case "system":
            return system_command(conversation, "")
        case other:
            raise DotsError(f"unknown: /show {other}", hint="give info, params, template or system")


def ctx_command(conversation: Conversation, argument: str) -> Outcome:
    """Show how full the context is, or load the model again with another one."""
    engine = conversation.engine
    if not argument:
        return Outcome(
            f"{conversation.n_tokens:,} of {engine.n_ctx:,} tokens; each takes "
            f"{format_bytes(engine.token_nbytes)}, and {engine.most_ctx:,} are the most here\n"
            + room.ways_out(engine, engine.n_ctx)
        )
    n_ctx = _tokens(argument)
    if not SHORTEST_CTX <= n_ctx <= engine.most_ctx:
        raise DotsError(
            f"/ctx {argument[:20]}: the context can't be that long",
            hint=f"give {SHORTEST_CTX} to {engine.most_ctx} tokens",
        )
    if conversation.turns and n_ctx <= conversation.n_tokens:
        raise DotsError(
            f"the conversation takes {conversation.n_tokens:,} tokens already",
            hint="/drop forgets the oldest turn, /clear every turn, /summarise shortens the oldest",
        )
    change = (n_ctx - engine.n_ctx) * engine.token_nbytes
    more = "more" if change >= 0 else "less"
    return Outcome(
        f"Loading again with {n_ctx:,} tokens: {format_bytes(abs(change))} {more} memory.",
        action="ctx", argument=str(n_ctx),
    )  # fmt: skip


def _tokens(text: str) -> int:
    """A number of tokens: 8192 or 8k."""
    digits, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    if not digits.isdecimal() or len(digits) > 9:
        raise DotsError(f"/ctx {text[:20]}: that is no number of tokens", hint="/ctx 16k")
    return int(digits) * factor


def model_command(conversation: Conversation, argument: str) -> Outcome:
    """Show the model, or go on with another one."""
    if not argument:
        name = conversation.engine.metadata.get("general.name", "")
        return Outcome(f"{name}\n{conversation.engine.path}".strip())
    return Outcome(action="model", argument=argument)
