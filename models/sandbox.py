"""The sandbox that chat templates run in: they come with a model file and are not trusted.

jinja2's immutable sandbox, without a loader, with the filters and methods that chat templates
use and no others. jinja2 bounds neither time nor memory, so before a template is compiled, every
loop, macro, literal, concatenation, filter and call in it is wrapped: it counts against one
budget, and what would be too large is refused before it is built. That gives most refusals their
words; what gets past it ends with the process it runs in, `dotscli.models.template_child`. The
only module that imports jinja2; it knows neither messages nor models.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import CodeType
from typing import Any

from jinja2 import Template, Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from dotscli.errors import DotsError
from dotscli.models.template_limits import MAX_SECONDS, Budget, RefusalError

HINT = "`dots inspect MODEL` shows the template; --no-template does without"

FILTERS = (
    "abs capitalize count d default dictsort first float int items last length list lower map max "
    "min reject rejectattr reverse round select selectattr sort title trim unique upper"
)
TEXT_METHODS = (
    "capitalize casefold count endswith find index isalnum isalpha isdigit islower isnumeric "
    "isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind "
    "rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
)
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(TEXT_METHODS.split()),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    LoopContext: frozenset({"cycle", "changed"}),
}


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained on; here its body as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counted(NodeTransformer):
    """Wraps what can repeat or grow into calls of the environment."""

    @staticmethod
    def _call(method: str, *values: nodes.Expr) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(method), list(values), [], None, None)

    def _body(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("tick")))
        return node  # type: ignore[no-any-return]  # jinja2's nodes have no typed fields

    visit_For = visit_Macro = visit_CallBlock = _body

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        # A tuple that is assigned to is a pattern, not a value.
        return node if getattr(node, "ctx", "load") == "store" else self._call("checked", node)

    visit_List = visit_Tuple = visit_Dict = _literal

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("joined", *node.nodes)

    def _foreign(self, node: nodes.Node) -> nodes.Node:
        raise RefusalError(f"it reads other files (line {node.lineno})")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _foreign


class _Sandbox(ImmutableSandboxedEnvironment):
    """One rendering's environment; its public methods are what `_Counted` calls."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants would be folded outside the budget
            extensions=[_Generation, LoopControlExtension],
            finalize=self.text,
        )
        self.budget = budget
        known = self.filters
        self.filters = {name: self._counted(known[name]) for name in FILTERS.split()}
        self.filters |= {
            "join": self._join,
            "replace": lambda text, old, new, count=-1: self._replace(
                self.text(text), self.text(old), self.text(new), count
            ),
            "safe": self.text,
            "string": self.text,
            "tojson": self._to_json,
        }
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": self._raise,
            "strftime_now": self._now,
        }

    def tick(self) -> None:
        self.budget.tick()

    def checked(self, value: Any) -> Any:
        self.budget.tick()
        self.budget.measure(value)
        return value

    def text(self, value: Any) -> str:
        """`str(value)`, measured first: the text of a list repeats all that it holds."""
        if isinstance(value, str | Undefined):
            return str(value)
        if not isinstance(value, int | float | list | tuple | dict | type(None)):
            raise RefusalError(f"it prints a {type(value).__name__}")
        return str(self.checked(value))

    def joined(self, *values: Any) -> str:
        return self._join(list(values))

    def concat(self, parts: Iterable[str]) -> str:
        """Output of macros and set blocks."""
        pieces: list[str] = []
        n_chars = 0
        for part in parts:
            n_chars += len(part)
            self.budget.fits(n_chars)
            pieces.append(part)
        self.budget.tick()
        return "".join(pieces)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.operands(operator, left, right)
        return self.checked(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if callable(value) and not isinstance(value, Macro):
            return any(isinstance(obj, kind) and attr in names for kind, names in METHODS.items())
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        return None  # str.format can build any width; no chat template needs it

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *args[:3])  # jinja2 adds keywords of its own in loops
        if isinstance(owner, str) and name == "join":
            return self._join(args[0], owner)
        if owner is self:  # a call that _Counted put there
            return obj(*args)
        return self.checked(super().call(context, obj, *args, **kwargs))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            return self.checked(function(*args, **kwargs))

        # Among the attributes is the one that says whether it takes the context first.
        counted.__dict__.update(getattr(function, "__dict__", {}))
        return counted

    def _replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        self.budget.tick()
        found = text.count(old)
        self.budget.fits(len(text) + (found if count < 0 else min(count, found)) * len(new))
        return text.replace(old, new, count)

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        parts = [
            self.text(value if attribute is None else self.getitem(value, attribute))
            for value in values
        ]
        self.checked(parts)
        self.budget.fits(len(d) * len(parts))
        return d.join(parts)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers defines it: Unicode stays, nothing is escaped for HTML."""
        self.checked([value, list(separators or ())])
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii,
            indent=min(indent, 16) if isinstance(indent, int) else None,
            separators=separators,
            sort_keys=sort_keys,
        )
        return self.concat(encoder.iterencode(value))

    @staticmethod
    def _raise(message: str) -> None:
        raise RefusalError(message)

    @staticmethod
    def _now(form: str) -> str:
        return datetime.now().strftime(form[:100])


def run(
    source: str,
    values: Mapping[str, Any],
    n_chars: int,
    seconds: float = MAX_SECONDS,
    spent: float = 0.0,
) -> str:
    """The text that a template makes of `values`, which hold `n_chars` characters of messages.

    The time is looked at between the steps of a template: compiling it, or one call within it, can
    take longer. Code that was compiled once is kept.

    Raises:
        DotsError: it is malformed, refuses the values, or may not do what it does.
    """
    sandbox = _Sandbox(Budget(n_chars, seconds, spent))
    try:
        template = Template.from_code(sandbox, _compiled(source), sandbox.globals, None)
        context = template.new_context(dict(values))
        return sandbox.concat(template.root_render_func(context))
    except (RefusalError, SecurityError) as error:
        raise DotsError(f"the chat template stopped: {_line(error)}", HINT) from error
    except TemplateError as error:
        where = f" (line {line})" if (line := getattr(error, "lineno", None)) else ""
        raise DotsError(f"the chat template is malformed: {_line(error)}{where}", HINT) from error
    except (ArithmeticError, LookupError, RecursionError, SyntaxError) as error:
        raise DotsError(f"the chat template failed: {_line(error)}", HINT) from error
    except (AttributeError, AssertionError, TypeError, ValueError) as error:
        raise DotsError(f"the chat template failed: {_line(error)}", HINT) from error


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> CodeType:
    sandbox = _Sandbox(Budget(0, MAX_SECONDS))
    return sandbox.compile(_Counted().visit(sandbox.parse(source)))


def _line(error: BaseException) -> str:
    """One line about an error; its text may come from the template."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
