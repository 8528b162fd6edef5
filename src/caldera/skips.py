"""Bad items, and what is done about them: stop at the first, or leave out a stated share and list every one."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from caldera.errors import InputError
from caldera.storage import write_whole


@dataclass(frozen=True, slots=True)
class Skip:
    """One item left out, and why."""

    where: str
    reason: str


@dataclass(slots=True)
class Skips:
    """Takes faults of single items; nothing is lost in silence."""

    allowed_share: float = 0.0
    """Share of all items that may be left out; at 0 the first fault is raised."""

    taken: list[Skip] = field(default_factory=list)
    """What was left out so far."""

    def take(self, where: str, fault: InputError) -> None:
        """Note that the item at `where` is left out because of `fault`.

        Raises:
            InputError: The fault itself, where nothing may be left out.
        """
        if self.allowed_share <= 0:
            raise fault
        self.taken.append(Skip(where, str(fault)))

    def check(self, total: int) -> None:
        """Compare what was left out with what is allowed, once all `total` items were met.

        Raises:
            InputError: More than the allowed share was left out.
        """
        if self.taken and len(self.taken) / total > self.allowed_share:
            raise InputError(
                f"{len(self.taken)} of {total} items are bad, over the allowed share of "
                f"{self.allowed_share:g}; the first: {self.taken[0].where}: {self.taken[0].reason}"
            )

    def write(self, path: Path) -> None:
        """List everything left out in a JSONL file."""
        lines = (json.dumps({"where": skip.where, "reason": skip.reason}) for skip in self.taken)
        write_whole(path, "".join(f"{line}\n" for line in lines))
