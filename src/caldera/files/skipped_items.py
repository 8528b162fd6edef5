"""Invalid items: raised at the first one, or skipped up to a fraction of all items and listed in a file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from caldera.errors import InputError
from caldera.files.atomic import write_atomic


@dataclass(frozen=True, slots=True)
class SkippedItem:
    """A skipped item and the reason."""

    location: str
    reason: str


@dataclass(slots=True)
class SkippedItems:
    """Collects skipped items, so that none is lost silently."""

    max_fraction: float = 0.0
    """Fraction of all items that may be skipped; at 0 the first error is raised."""

    items: list[SkippedItem] = field(default_factory=list)

    def add_or_raise(self, location: str, error: InputError) -> None:
        """Record a skipped item, or raise its error if no item may be skipped."""
        if self.max_fraction <= 0:
            raise error
        self.items.append(SkippedItem(location, str(error)))

    def raise_if_over_limit(self, total: int) -> None:
        """Check the number of skipped items once all `total` items were read."""
        if self.items and len(self.items) / total > self.max_fraction:
            first = self.items[0]
            raise InputError(
                f"{len(self.items)} of {total} items are invalid, over the limit of "
                f"{self.max_fraction:g}; the first: {first.location}: {first.reason}"
            )

    def write(self, path: Path) -> None:
        """Write the skipped items as JSON lines."""
        write_atomic(path, (f"{json.dumps(asdict(item))}\n" for item in self.items))
