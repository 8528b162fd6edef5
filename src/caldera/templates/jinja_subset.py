"""Interpreter of the subset of Jinja that chat templates of models need.

A chat template in a model folder is a program from a stranger. Jinja only parses it; this interpreter evaluates the
syntax tree. It knows text, numbers, lists and dictionaries, looks nothing up in Python objects, calls only the methods
in its table, and ends after a fixed number of steps and characters. Anything else makes a template unreadable.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

_MAX_SOURCE, _MAX_TEXT, _MAX_STEPS = 50_000, 20_000, 50_000
"""Characters of a template and of any text in it, and steps of its evaluation."""

_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
"""Marks of the answer for transformers, which Jinja itself does not know."""

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda left, right: left == right,
    "ne": lambda left, right: left != right,
    "gt": lambda left, right: left > right,
    "gteq": lambda left, right: left >= right,
    "lt": lambda left, right: left < right,
    "lteq": lambda left, right: left <= right,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda left, right: _add(left, right),
    "-": lambda left, right: int(left) - int(right),
    # int() rejects a text, which Python would format
    "%": lambda left, right: int(left) % int(right),
}

_TESTS: dict[str, Callable[[Any], bool]] = {
    "defined": lambda value: value is not None,
    "undefined": lambda value: value is None,
    "none": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "mapping": lambda value: isinstance(value, dict),
    "iterable": lambda value: isinstance(value, list | str | dict),
    "sequence": lambda value: isinstance(value, list | str),
    "true": lambda value: value is True,
    "false": lambda value: value is False,
}

_FILTERS: dict[str, Callable[..., Any]] = {
    "trim": lambda text: text.strip(),
    "upper": lambda text: text.upper(),
    "lower": lambda text: text.lower(),
    "capitalize": lambda text: text.capitalize(),
    "string": lambda value: _to_text(value),
    "list": list,
    "length": len,
    "count": len,
    "first": lambda items: items[0],
    "last": lambda items: items[-1],
    "join": lambda items, separator="": separator.join(items),
    "map": lambda items, attribute: [item.get(attribute) for item in items],
    "selectattr": lambda items, name, test="defined", value=None: [
        item for item in items if _matches(item.get(name), test, value)
    ],
    "rejectattr": lambda items, name, test="defined", value=None: [
        item for item in items if not _matches(item.get(name), test, value)
    ],
}

_METHODS: dict[str, Callable[..., Any]] = {
    "upper": str.upper,
    "lower": str.lower,
    "capitalize": str.capitalize,
    "title": str.title,
    "strip": str.strip,
    "lstrip": str.lstrip,
    "rstrip": str.rstrip,
    "startswith": str.startswith,
    "endswith": str.endswith,
}
"""Methods of texts; no other is called."""

_ERRORS = (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError)


class UnreadableTemplateError(ValueError):
    """A chat template is more than text, conditions and loops, or it fails."""


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Evaluate a chat template.

    Args:
        source: The template.
        variables: Values of plain types by name, such as messages and eos_token.

    Raises:
        UnreadableTemplateError: The template is no such text, or uses anything else.
    """
    if len(source) > _MAX_SOURCE:
        raise UnreadableTemplateError(f"it has {len(source):,} characters")
    try:
        environment = Environment(trim_blocks=True, lstrip_blocks=True)
        tree = environment.parse(_GENERATION.sub("", source))
        interpreter = _Interpreter()
        interpreter.run(tree.body, dict(variables))
    except TemplateSyntaxError as error:
        raise UnreadableTemplateError(f"it has a syntax error: {error.message}") from None
    except _ERRORS as error:
        if isinstance(error, UnreadableTemplateError):
            raise
        raise UnreadableTemplateError(f"it fails with {type(error).__name__}") from None
    return "".join(interpreter.output)


class _Interpreter:
    """Evaluates one syntax tree once."""

    def __init__(self) -> None:
        self.output: list[str] = []
        self._steps = 0
        self._length = 0

    def run(self, statements: list[nodes.Node], scope: dict[str, Any]) -> None:
        """Run statements; assignments change `scope`."""
        for statement in statements:
            self._count_step()
            match statement:
                case nodes.Output():
                    for part in statement.nodes:
                        self._write(self._evaluate(part, scope))
                case nodes.If():
                    self.run(self._choose(statement, scope), scope)
                case nodes.For(target=nodes.Name(name=name), test=None):
                    self._loop(name, statement, scope)
                case nodes.Assign(target=nodes.Name(name=name)):
                    scope[name] = self._evaluate(statement.node, scope)
                case nodes.Assign(target=nodes.NSRef(name=name, attr=attribute)):
                    scope[name][attribute] = self._evaluate(statement.node, scope)
                case _:
                    raise UnreadableTemplateError(f"it uses {type(statement).__name__}")

    def _choose(self, statement: nodes.If, scope: dict[str, Any]) -> list[nodes.Node]:
        """Return the statements of the branch that is taken."""
        for branch in (statement, *statement.elif_):
            if self._evaluate(branch.test, scope):
                return branch.body
        return statement.else_

    def _loop(self, name: str, statement: nodes.For, scope: dict[str, Any]) -> None:
        """Run a loop over a list; assignments within it end with each turn."""
        items = self._evaluate(statement.iter, scope)
        if not isinstance(items, list):
            raise UnreadableTemplateError("it loops over something that is no list")
        for index, item in enumerate(items):
            loop = {
                "index0": index,
                "index": index + 1,
                "first": index == 0,
                "last": index == len(items) - 1,
                "length": len(items),
            }
            self.run(statement.body, {**scope, name: item, "loop": loop})
        if not items:
            self.run(statement.else_, scope)

    def _evaluate(self, node: nodes.Node, scope: dict[str, Any]) -> Any:  # noqa: ANN401 - of any plain type
        """Return the value of an expression; None if it is undefined."""
        self._count_step()
        value = self._value(node, scope)
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise UnreadableTemplateError("it writes a text without end")
        return value

    def _value(self, node: nodes.Node, scope: dict[str, Any]) -> Any:  # noqa: ANN401
        match node:
            case nodes.TemplateData(data=value) | nodes.Const(value=value):
                return value
            case nodes.Name(name=name):
                return scope.get(name)
            case nodes.List(items=items) | nodes.Tuple(items=items):
                return [_constant(item) for item in items]
            case nodes.Getattr(node=inner, attr=name):
                return _item(self._evaluate(inner, scope), name)
            case nodes.Getitem(node=inner, arg=nodes.Slice(start=start, stop=stop, step=None)):
                bounds = [bound and self._evaluate(bound, scope) for bound in (start, stop)]
                return self._evaluate(inner, scope)[slice(*bounds)]
            case nodes.Getitem(node=inner, arg=key):
                return _item(self._evaluate(inner, scope), self._evaluate(key, scope))
            case _:
                return self._operation(node, scope)

    def _operation(self, node: nodes.Node, scope: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the value of an operator, filter, test or call."""
        match node:
            case nodes.Filter() | nodes.Test() | nodes.Call():
                return self._call(node, scope)
            case nodes.And(left=first, right=second):
                return self._evaluate(first, scope) and self._evaluate(second, scope)
            case nodes.Or(left=first, right=second):
                return self._evaluate(first, scope) or self._evaluate(second, scope)
            case nodes.BinExpr(left=first, right=second):
                function = _lookup(_OPERATORS, node.operator or "")
                return function(self._evaluate(first, scope), self._evaluate(second, scope))
            case nodes.Concat(nodes=parts):
                return "".join(_to_text(self._evaluate(part, scope)) for part in parts)
            case nodes.Not(node=inner):
                return not self._evaluate(inner, scope)
            case nodes.Neg(node=inner):
                return -self._evaluate(inner, scope)
            case nodes.Compare(expr=first, ops=[nodes.Operand(op=name, expr=second)]):
                return _COMPARISONS[name](
                    self._evaluate(first, scope), self._evaluate(second, scope)
                )
            case nodes.CondExpr(test=test, expr1=first, expr2=second):
                chosen = first if self._evaluate(test, scope) else second
                return chosen and self._evaluate(chosen, scope)
            case _:
                raise UnreadableTemplateError(f"it uses {type(node).__name__}")

    def _call(self, node: nodes.Filter | nodes.Test | nodes.Call, scope: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the result of a filter, a test, or a method of a text."""
        if node.dyn_args or node.dyn_kwargs:
            raise UnreadableTemplateError("it passes arguments by a star")
        arguments = [self._evaluate(argument, scope) for argument in node.args or ()]
        options = {str(pair.key): self._evaluate(pair.value, scope) for pair in node.kwargs or ()}
        match node:
            case nodes.Filter(node=nodes.Node() as inner, name=name):
                function = _lookup(_FILTERS, name)
            case nodes.Test(node=inner, name=name):
                function = _lookup(_TESTS, name)
            case nodes.Call(node=nodes.Getattr(node=inner, attr=name)):
                function = _lookup(_METHODS, name)
            case nodes.Call(node=nodes.Name(name="namespace")):
                return options
            case nodes.Call(node=nodes.Name(name=name)):
                raise UnreadableTemplateError(f"it calls {name!r}")
            case _:
                raise UnreadableTemplateError("it uses a filter of a block")
        return function(self._evaluate(inner, scope), *arguments, **options)

    def _write(self, value: object) -> None:
        text = _to_text(value)
        self._length += len(text)
        if self._length > _MAX_TEXT:
            raise UnreadableTemplateError("it writes a text without end")
        self.output.append(text)

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise UnreadableTemplateError("it does not end")


def _to_text(value: object) -> str:
    """Return a value as it is printed; an undefined one prints nothing."""
    if isinstance(value, str | int | None):
        return "" if value is None else str(value)
    raise UnreadableTemplateError(f"it prints a {type(value).__name__}")


def _constant(node: nodes.Node) -> Any:  # noqa: ANN401 - of any plain type
    if isinstance(node, nodes.Const):
        return node.value
    raise UnreadableTemplateError("it builds a list")


def _item(container: object, key: object) -> Any:  # noqa: ANN401
    """Return an item of a dictionary, list or text; None if a dictionary lacks it."""
    if isinstance(container, dict):
        return container.get(key)
    if isinstance(container, list | str) and isinstance(key, int):
        return container[key]
    raise UnreadableTemplateError(f"it reads {key!r}")


def _add(left: object, right: object) -> str | int:
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    raise UnreadableTemplateError("it adds values that are neither texts nor numbers")


def _matches(value: object, test: str, expected: object) -> bool:
    """Return whether a value passes the test of `selectattr`."""
    if test in ("equalto", "eq", "=="):
        return value == expected
    return _lookup(_TESTS, test)(value)


def _lookup(table: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    if name not in table:
        raise UnreadableTemplateError(f"it uses {name!r}")
    return table[name]
