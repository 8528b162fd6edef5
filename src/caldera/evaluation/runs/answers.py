"""Answer cache of a run (journal.jsonl), and its item results (answers.jsonl).

    {"answers": [{"key": "3fa4...", "id": "7", "text": "yes"}, ...]}

Each line of the journal holds the answers of a batch: after a crash it is there completely or, truncated, not at all.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from caldera.errors import InputError
from caldera.evaluation.answerers.answerer import Answer
from caldera.evaluation.benchmark import Item, Score
from caldera.files.atomic import write_atomic
from caldera.files.fingerprint import json_fingerprint
from caldera.files.journal import JournalFile, journal_lines
from caldera.files.records import read_records
from caldera.overrides import with_former_names


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """Everything that an answer depends on."""

    identity: Mapping[str, str]
    """Model and settings."""

    prompt: str
    """The exact prompt."""

    images: Sequence[str]
    """Digests of the image files."""

    max_new_tokens: int
    batch_context: str = ""
    """Digest of the ids of all items, if they are answered in batches: other items make other batches, whose sums are
    rounded differently. Empty if each item is answered alone."""

    @property
    def digest(self) -> str:
        """The sha256 of all fields, with settings under their former names: journals of version 0.1 stay valid."""
        identity = with_former_names(dict(self.identity))
        fields = [
            identity,
            self.prompt,
            list(self.images),
            self.max_new_tokens,
            self.batch_context,
        ]
        return json_fingerprint(fields)


class AnswerCache:
    """Cache of finished answers in a journal file."""

    def __init__(self, path: Path) -> None:
        """Open or create a journal; a truncated last line is moved to another file."""
        self.path = path
        self._file = JournalFile(path)
        self._answers: dict[str, Answer] = {}
        self._read()

    def _read(self) -> None:
        """Read the answers that are on disk."""
        for offset, line in journal_lines(self.path):
            try:
                for entry in line["answers"]:
                    self._answers[entry["key"]] = Answer(
                        entry["id"],
                        entry["text"],
                        option_log_likelihoods=tuple(
                            (total, num_tokens) for total, num_tokens in entry.get("weights", ())
                        ),
                        model=entry.get("by", ""),
                    )
            except (LookupError, TypeError, ValueError):
                raise InputError(
                    f"{self.path}: the line at byte {offset} is not a journal's; was it edited?"
                ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def count_on_disk(self, keys: Collection[str]) -> int:
        """Return how many of the keys have an answer in the file, also after an interruption at any point."""
        self.close()
        self._file = JournalFile(self.path)
        self._read()
        return sum(key in self._answers for key in keys)

    def find(self, key: str, item_id: str) -> Answer | None:
        """Return the cached answer of a key, as the answer to an item; None if there is none."""
        cached = self._answers.get(key)
        return replace(cached, id=item_id) if cached else None

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Write answers by key, and flush them to disk.

        Raises:
            OutputError: The file cannot be written.
        """
        if not answers:
            return
        entries = []
        for key, answer in answers.items():
            entry: dict[str, Any] = {"key": key, "id": answer.id, "text": answer.text}
            if answer.option_log_likelihoods:
                entry["weights"] = answer.option_log_likelihoods
            if answer.model:
                entry["by"] = answer.model
            entries.append(entry)
        self._file.append({"answers": entries})
        self._file.flush()
        self._answers |= answers


State = Literal["right", "partly right", "wrong", "unparsed", "failed", "unscored"]

_FORMER_FIELDS = {
    "pictures": "images",
    "asked": "prompt",
    "mark": "score",
    "unread": "parse_error",
    "weights": "option_log_likelihoods",
}
"""Fields of answers.jsonl in version 0.1."""


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One item with its answer and score; a line of answers.jsonl."""

    id: str
    kind: str
    """The item's category."""

    slices: list[str]
    images: list[str]
    question: str
    """The last turn."""

    prompt: str
    """The exact prompt, as it was sent or given to the model."""

    answer: str | None
    """None if the item failed."""

    extracted: str
    """The part of the answer that was compared."""

    references: list[str]
    choices: list[str]
    score: float | None
    """Between 0 and 1; None if the item failed, or the benchmark scores only all items together."""

    parse_error: str
    """Why the answer could not be parsed; empty if it could."""

    failed: str
    """Why there is no answer; empty if there is one."""

    option_log_likelihoods: list[list[float]]
    """Log likelihood in nats and number of tokens of each option; empty if answers are generated."""

    @property
    def state(self) -> State:
        """Result in a word."""
        if self.failed:
            return "failed"
        if self.parse_error:
            return "unparsed"
        if self.score is None:
            return "unscored"
        return "right" if self.score >= 1 else "partly right" if self.score > 0 else "wrong"


def build_item_results(
    items: Sequence[Item],
    prompts: Mapping[str, str],
    answers: Mapping[str, Answer],
    score: Score,
) -> list[ItemResult]:
    """Return the result of each item."""
    return [
        ItemResult(
            id=item.id,
            kind=item.category,
            slices=list(item.slices),
            images=list(item.conversation.images),
            question=item.conversation.turns[-1].text.strip(),
            prompt=prompts.get(item.id, ""),
            answer=None if answer.error else answer.text,
            extracted=score.parsed_answers.get(item.id, answer.text),
            references=list(item.references),
            choices=list(item.choices),
            score=None if answer.error else score.item_scores.get(item.id),
            parse_error=score.unparsed.get(item.id, ""),
            failed=answer.error,
            option_log_likelihoods=[list(pair) for pair in answer.option_log_likelihoods],
        )
        for item in items
        for answer in [answers[item.id]]
    ]


def write_item_results(file: Path, results: Sequence[ItemResult]) -> None:
    """Write one line of JSON for each item.

    Raises:
        OutputError: The file cannot be written.
    """
    lines = (f"{json.dumps(asdict(result), ensure_ascii=False)}\n" for result in results)
    write_atomic(file, lines)


def read_item_results(file: Path) -> list[ItemResult]:
    """Read an answers.jsonl, also of version 0.1.

    Raises:
        InputError: The file cannot be read, or is not of an evaluation.
    """
    results = []
    for location, record in read_records(file):
        try:
            if not isinstance(record, dict):
                raise TypeError
            fields = {_FORMER_FIELDS.get(name, name): record[name] for name in map(str, record)}
            results.append(ItemResult(**fields))
        except TypeError:
            raise InputError(f"{location} is no line of an evaluation's answers.jsonl") from None
    return results
