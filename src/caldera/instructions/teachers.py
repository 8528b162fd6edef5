"""Teachers by exact name, and the kinds that a user asks for."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from caldera.errors import UnknownNameError, UsageError
from caldera.instructions.asking.teaching import LLM_CLIENTS
from caldera.instructions.scripted import ScriptedTeacher
from caldera.instructions.teacher import KINDS, Kind, Teacher

TEACHERS: dict[str, Callable[[Sequence[str], int], Teacher]] = {
    "scripted": ScriptedTeacher,
}
"""Makers of teachers that need no language model, each from the categories that were looked for and a seed."""


def check_teacher(name: str) -> None:
    """Check that a teacher without a language model is called exactly `name`.

    Raises:
        UnknownNameError: There is none.
        UsageError: It is a language model, which has to be ordered as `Teaching`.
    """
    if name in LLM_CLIENTS:
        raise UsageError(f"the teacher {name} is a language model; say which with Order.teaching")
    if name not in TEACHERS:
        raise UnknownNameError("teacher", name, {*TEACHERS, *LLM_CLIENTS})


def find_teacher(name: str, categories: Sequence[str], seed: int) -> Teacher:
    """Make the teacher called exactly `name`.

    Raises:
        UsageError: There is none, or it is a language model.
    """
    check_teacher(name)
    return TEACHERS[name](categories, seed)


def parse_kinds(text: str, usual: Mapping[Kind, float] = MappingProxyType({})) -> dict[Kind, float]:
    """Read kinds with their shares: 'conversation,detail:0.5'; one without a share has its `usual` one, or all.

    Raises:
        UsageError: A kind is unknown, or a share is not a number between 0 and 1.
    """
    known = {str(kind): kind for kind in KINDS}
    kinds: dict[Kind, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        if name not in known:
            raise UnknownNameError("kind of instruction", name, known)
        try:
            kinds[known[name]] = float(share or usual.get(known[name], 1))
        except ValueError:
            raise UsageError(
                f"the share of {name} is {share!r}; write a number such as {name}:0.5"
            ) from None
        if not 0 < kinds[known[name]] <= 1:
            raise UsageError(f"the share of {name} is {share}; it must lie between 0 and 1")
    return kinds
