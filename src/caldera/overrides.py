"""Change one setting of a recipe or stage by its dotted name: `finetune.batch_size=8`."""

import ast
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from caldera.errors import UnknownNameError, UsageError

_Config = TypeVar("_Config")


def apply_overrides(config: _Config, assignments: Iterable[str]) -> _Config:
    """Return a frozen dataclass with every `name=value` applied, through the checks it makes when it is built.

    Raises:
        UsageError: A name is unknown (with the nearest known one), or a value does not fit.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment} has no '='; write --set NAME=VALUE")
        config = _apply_one(config, name.strip(), text.strip(), name.strip())
    return config


def _apply_one(config: Any, dotted: str, text: str, whole: str) -> Any:  # noqa: ANN401 - any frozen dataclass
    """Return `config` with the field at `dotted` set to what `text` spells."""
    name, _, rest = dotted.partition(".")
    known = {field.name: field for field in fields(config)}
    if name not in known:
        raise UnknownNameError(f"setting of {type(config).__name__}", name, known)
    old, annotation = getattr(config, name), known[name].type
    if group := _group(annotation):
        return replace(
            config, **{name: _apply_to_group(group, old, (rest, text, whole), annotation)}
        )
    if rest:
        raise UsageError(f"{whole} does not exist; {name} is a single setting")
    return replace(config, **{name: _parse_value(text, old, annotation, whole)})


def _group(annotation: object) -> type | None:
    """Return the dataclass that a field holds, also where it may be None; None where it holds a single value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)


def _is_optional(annotation: object) -> bool:
    return NoneType in get_args(annotation)


def _apply_to_group(
    group: type, old: object, assignment: tuple[str, str, str], annotation: object
) -> object:
    """Return a group with one of its settings changed; one that may be None is also switched on and off.

    `lora.rank=8` switches it on with its defaults and that rank, `lora=on` with its defaults, `lora=none` off.

    Raises:
        UsageError: No setting of the group is named, or it cannot be switched.
    """
    rest, text, whole = assignment
    if rest:
        return _apply_one(group() if old is None else old, rest, text, whole)
    if _is_optional(annotation) and text.lower() in ("on", "none"):
        return None if text.lower() == "none" else old or group()
    switch = f", or {whole}=on, {whole}=none" if _is_optional(annotation) else ""
    raise UsageError(f"{whole} is a group of settings; name one of them, as {whole}.NAME{switch}")


def _type_name(annotation: object) -> str:
    """Return a field's type as people write it: 'int', 'float | None'."""
    if annotation is NoneType:
        return "None"
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_type_name, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return " | ".join(map(repr, get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _parse_value(text: str, old: object, annotation: object, whole: str) -> object:
    """Read a value of the kind that the field holds.

    Raises:
        UsageError: It is of another kind.
    """
    kind, optional = _type_name(annotation), _is_optional(annotation)
    if optional and text.lower() == "none":
        return None
    if isinstance(old, Path):
        return Path(text)
    if isinstance(old, str) or (old is None and ("str" in kind or "'" in kind)):
        return text
    try:
        new = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        new = text
    if isinstance(old, tuple) and isinstance(new, str):
        new = tuple(part.strip() for part in new.split(","))
    if "float" in kind:
        new = tuple(map(_widen_int, new)) if isinstance(new, tuple) else _widen_int(new)
    if not _has_type(new, old, kind):
        raise UsageError(f"{whole}={text} does not fit: it is a {kind}, now {old!r}")
    return new


def _widen_int(value: object) -> object:
    """Return a whole number as a float, anything else as it is."""
    return float(value) if type(value) is int else value


def _has_type(new: object, old: object, kind: str) -> bool:
    """Tell whether a value is of the kind of the one it replaces."""
    if old is None:
        return type(new).__name__ in kind
    if isinstance(old, tuple) and isinstance(new, tuple):
        right_length = "..." in kind or len(new) == len(old)
        kinds = {*map(type, old)} or {str}  # the tuples that may be empty hold names
        return right_length and {*map(type, new)} <= kinds
    return type(new) is type(old)
