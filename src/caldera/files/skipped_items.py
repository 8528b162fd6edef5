"""Report of invalid items: raised at the first one, or skipped up to a limit, counted by reason and listed."""

import json
import logging
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from caldera.errors import InputError
from caldera.files.atomic import translate_os_errors, write_atomic

log = logging.getLogger(__name__)

_SPECIFIC = re.compile(r"""'[^']*'|"[^"]*"|\[[^]]*\]|\S*(?:[\d/\\]|\w\.\w)\S*(?: x \S*\d\S*)?""")
"""Parts of a reason that differ between items: quoted values, lists, numbers, paths and file names."""

_MAX_REASONS = 10
"""Reasons that the summary prints; the listing has all."""


@dataclass(frozen=True, slots=True)
class SkippedItem:
    """An item that was skipped, or changed before use, and the reason."""

    location: str
    reason: str
    action: Literal["skipped", "changed"] = "skipped"


@dataclass(slots=True)
class SkippedItems:
    """Collects skipped and changed items, so that none is lost silently."""

    max_fraction: float = 0.0
    """Fraction of all items that may be skipped; at 0 the first error is raised."""

    items: list[SkippedItem] = field(default_factory=list)
    """Skipped items, in order."""

    notes: list[SkippedItem] = field(default_factory=list)
    """Items that were used after a change, in order; they do not count against the limit."""

    def add_or_raise(self, location: str, error: InputError) -> None:
        """Record a skipped item, or raise its error if no item may be skipped."""
        if self.max_fraction <= 0:
            raise error
        reason = str(error).removeprefix(f"{location}: ").removeprefix(f"{location} ")
        self.items.append(SkippedItem(location, reason))

    def note(self, location: str, reason: str) -> None:
        """Record that an item was changed, or a part of it omitted, before use."""
        self.notes.append(SkippedItem(location, reason, "changed"))

    def raise_if_over_limit(self, total: int, listing: Path | None = None) -> None:
        """Check the number of skipped items once all `total` items were read."""
        if self.items and len(self.items) / max(1, total) > self.max_fraction:
            first = self.items[0]
            raise InputError(
                f"{len(self.items)} of {total} items are invalid, over the limit of "
                f"{self.max_fraction:g}; the first: {first.location}: {first.reason}"
                + (f"; all are listed in {listing}" if listing else "")
            )

    def finish(self, total: int, listing: Path | None = None) -> None:
        """Write the list, log the number of items by reason, and check the limit.

        Args:
            total: Number of all items, skipped ones included.
            listing: File of the list, with one JSON object per line; an earlier one is removed if there is nothing to
                list.

        Raises:
            InputError: More items were skipped than `max_fraction` allows.
            OutputError: The list could not be written.
        """
        if listing and (self.items or self.notes):
            self.write(listing)
        elif listing:
            with translate_os_errors(listing):
                listing.unlink(missing_ok=True)
        listed_in = f", listed in {listing}" if listing else ""
        for items, verb in ((self.items, "skipped"), (self.notes, "changed")):
            if items:
                subject = f"{len(items)} of {total} items" if verb == "skipped" else f"{len(items)}"
                log.warning("%s %s%s: %s", verb, subject, listed_in, _count_reasons(items))
        self.raise_if_over_limit(total, listing)

    def write(self, path: Path) -> None:
        """Write the skipped items, then the changed ones, as JSON lines."""
        items = (*self.items, *self.notes)
        write_atomic(path, (f"{json.dumps(asdict(item))}\n" for item in items))


def _count_reasons(items: list[SkippedItem]) -> str:
    """Return the most frequent reasons with their counts, encodable as UTF-8; details of single items are omitted."""
    kinds = Counter(_SPECIFIC.sub("...", item.reason) for item in items)
    examples = {_SPECIFIC.sub("...", item.reason): item.reason for item in items}
    texts = [
        f"{count} x {kind if count > 1 else examples[kind]}"
        for kind, count in kinds.most_common(_MAX_REASONS)
    ]
    hidden = len(kinds) - len(texts)
    summary = "; ".join(texts) + (f"; and {hidden} more reasons" if hidden else "")
    return summary.encode(errors="backslashreplace").decode()
