"""Change one setting of a recipe or stage by its dotted name: `finetune.batch_size=8`."""

import ast
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from caldera.errors import UnknownNameError, UsageError

_Config = TypeVar("_Config")


def with_settings(config: _Config, assignments: Iterable[str]) -> _Config:
    """Return a frozen dataclass with every `name=value` applied, through the checks it makes when it is built.

    Raises:
        UsageError: A name is unknown (with the nearest known one), or a value does not fit.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment} has no '='; write --set NAME=VALUE")
        config = _with_setting(config, name.strip(), text.strip(), name.strip())
    return config


def _with_setting(config: Any, dotted: str, text: str, whole: str) -> Any:  # noqa: ANN401 - any frozen dataclass
    """Return `config` with the field at `dotted` set to what `text` spells."""
    name, _, rest = dotted.partition(".")
    known = {field.name: field for field in fields(config)}
    if name not in known:
        raise UnknownNameError(f"setting of {type(config).__name__}", name, known)
    old = getattr(config, name)
    if is_dataclass(old):
        if not rest:
            raise UsageError(f"{whole} is a group of settings; name one of them, as {whole}.NAME")
        return replace(config, **{name: _with_setting(old, rest, text, whole)})
    if rest:
        raise UsageError(f"{whole} does not exist; {name} is a single setting")
    return replace(config, **{name: _value(text, old, _kind(known[name].type), whole)})


def _kind(annotation: object) -> str:
    """Return a field's type as people write it: 'int', 'float | None'."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _value(text: str, old: object, kind: str, whole: str) -> object:
    """Read a value of the kind that the field holds.

    Raises:
        UsageError: It is of another kind.
    """
    if isinstance(old, Path):
        return Path(text)
    if isinstance(old, str) or (kind == "str | None" and text.lower() != "none"):
        return text
    try:
        new = ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        new = text
    if isinstance(old, tuple) and isinstance(new, str):
        new = tuple(part.strip() for part in new.split(","))
    if "float" in kind:
        new = tuple(map(_as_float, new)) if isinstance(new, tuple) else _as_float(new)
    fits = new is None if "None" in kind and new is None else _same_kind(new, old, kind)
    if not fits:
        raise UsageError(f"{whole}={text} does not fit: it is a {kind}, now {old!r}")
    return new


def _as_float(value: object) -> object:
    """Return a whole number as a float, anything else as it is."""
    return float(value) if type(value) is int else value


def _same_kind(new: object, old: object, kind: str) -> bool:
    """Tell whether a value is of the kind of the one it replaces."""
    if old is None:
        return type(new).__name__ in kind
    if isinstance(old, tuple) and isinstance(new, tuple):
        right_length = "..." in kind or len(new) == len(old)
        return right_length and {*map(type, new)} <= {*map(type, old)}
    return type(new) is type(old)
