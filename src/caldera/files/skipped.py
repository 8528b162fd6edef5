"""Bad items, and what is done about them: stop at the first, or leave out a stated share and list every one."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from caldera.errors import InputError
from caldera.files.atomic import write_atomic


@dataclass(frozen=True, slots=True)
class SkippedItem:
    """One item left out, and why."""

    location: str
    reason: str


@dataclass(slots=True)
class SkippedItems:
    """Takes faults of single items; nothing is lost in silence."""

    max_fraction: float = 0.0
    """Share of all items that may be left out; at 0 the first fault is raised."""

    items: list[SkippedItem] = field(default_factory=list)
    """What was left out so far."""

    def add_or_raise(self, where: str, fault: InputError) -> None:
        """Note that the item at `where` is left out because of `fault`.

        Raises:
            InputError: The fault itself, where nothing may be left out.
        """
        if self.max_fraction <= 0:
            raise fault
        self.items.append(SkippedItem(where, str(fault)))

    def raise_if_over_limit(self, total: int) -> None:
        """Compare what was left out with what is allowed, once all `total` items were met.

        Raises:
            InputError: More than the allowed share was left out.
        """
        if self.items and len(self.items) / total > self.max_fraction:
            raise InputError(
                f"{len(self.items)} of {total} items are bad, over the allowed share of "
                f"{self.max_fraction:g}; the first: {self.items[0].location}: {self.items[0].reason}"
            )

    def write(self, path: Path) -> None:
        """List everything left out in a JSONL file."""
        lines = (
            json.dumps({"location": skip.location, "reason": skip.reason}) for skip in self.items
        )
        write_atomic(path, "".join(f"{line}\n" for line in lines))
