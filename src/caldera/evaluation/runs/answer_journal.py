"""Answers in, answers of earlier starts out: each is found again by all that it depends on, and by nothing else.

    {"answers": [{"key": "3fa4...", "id": "7", "text": "yes"}, ...]}

What was answered together stands on one line: it is there as a whole or, cut off by the end of the process, not at all.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caldera.errors import InputError
from caldera.evaluation.answering.answerer import Answer
from caldera.journal_file import JournalFile, journal_lines


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """What an answer depends on."""

    identity: Mapping[str, str]
    """Model and parameters."""

    prompt: str
    """Exactly as it is asked."""

    images: Sequence[str]
    """Digests of the images' content."""

    max_new_tokens: int
    batch_context: str = ""
    """Digest of the ids of all items that are asked, where they are answered in batches: another choice of items makes
    other batches, whose sums are rounded otherwise. Empty where each item is asked alone."""

    @property
    def digest(self) -> str:
        """The sha256 of all of it."""
        told = [
            dict(self.identity),
            self.prompt,
            list(self.images),
            self.max_new_tokens,
            self.batch_context,
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """The file, and the answers that it holds."""

    def __init__(self, path: Path) -> None:
        """Open a journal, or begin one; a torn last line is moved aside.

        Raises:
            InputError: A line in the middle is broken.
            OutputError: It cannot be written.
        """
        self._file = JournalFile(path)
        self._known: dict[str, Answer] = {}
        for offset, line in journal_lines(path):
            try:
                for each in line["answers"]:
                    weights = tuple((total, tokens) for total, tokens in each.get("weights", ()))
                    self._known[each["key"]] = Answer(
                        each["id"],
                        each["text"],
                        option_log_likelihoods=weights,
                        model=each.get("by", ""),
                    )
            except (LookupError, TypeError, ValueError):
                raise InputError(
                    f"{path}: the line at byte {offset} is not a journal's; was it edited?"
                ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def find(self, key: str, item: str) -> Answer | None:
        """Return the answer to what has this key, as the answer of an item; None where there is none."""
        known = self._known.get(key)
        return replace(known, id=item) if known else None

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Write answers by key, and bring them to disk.

        Raises:
            OutputError: They cannot be written.
        """
        if not answers:
            return
        told = []
        for key, answer in answers.items():
            line: dict[str, Any] = {"key": key, "id": answer.id, "text": answer.text}
            if answer.option_log_likelihoods:
                line["weights"] = answer.option_log_likelihoods
            if answer.model:
                line["by"] = answer.model
            told.append(line)
        self._file.append({"answers": told})
        self._file.flush()
        self._known |= answers
