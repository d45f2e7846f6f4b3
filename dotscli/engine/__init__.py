"""The one door to llama.cpp: tokens go in, pieces of text come out.

Everything that imports llama_cpp lies in this package, on its low-level interface. It knows
nothing of messages, templates or terminals.
"""

from __future__ import annotations

from dotscli.engine.abort import say_at_abort
from dotscli.engine.cpu import caveats
from dotscli.engine.devices import Device, devices, idle_backends
from dotscli.engine.engine import Engine
from dotscli.engine.grammar import check_grammar, json_schema_grammar
from dotscli.engine.lib import versions
from dotscli.engine.options import EngineOptions, HotOptions
from dotscli.engine.rpc.client import has_rpc

__all__ = [
    "Device",
    "Engine",
    "EngineOptions",
    "HotOptions",
    "caveats",
    "check_grammar",
    "devices",
    "has_rpc",
    "idle_backends",
    "json_schema_grammar",
    "say_at_abort",
    "versions",
]
