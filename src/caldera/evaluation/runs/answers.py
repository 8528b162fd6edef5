"""Answer cache, answers.jsonl.

    {"answers": [{"key": "3fa4...", "id": "7", "text": "yes"}, ...]}

What was answered together stands on one line: it is there as a whole or, cut off by the end of the process, not at all.
"""

import json
from collections.abc import Mapping, Sequence
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
        return json_fingerprint(told)


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


State = Literal["right", "partly right", "wrong", "unparsed", "failed", "unmarked"]


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One item with its answer and mark."""

    id: str
    kind: str
    slices: list[str]
    images: list[str]
    question: str
    """What the user says last."""

    prompt: str
    """The whole prompt, exactly as it was sent or given to the model."""

    answer: str | None
    """None where it failed."""

    extracted: str
    """What of the answer was compared."""

    references: list[str]
    choices: list[str]
    score: float | None
    """What the answer was worth, between 0 and 1; None where the benchmark only scores all together, or it failed."""

    parse_error: str
    """Why the answer could not be read as what was asked for; empty where it could."""

    failed: str
    """Why there is no answer; empty where there is one."""

    option_log_likelihoods: list[list[float]]
    """Of each option: its log-likelihood in nats, and its tokens; empty where answers are written."""

    @property
    def state(self) -> State:
        """How it went, in a word."""
        if self.failed:
            return "failed"
        if self.parse_error:
            return "unparsed"
        if self.score is None:
            return "unmarked"
        return "right" if self.score >= 1 else "partly right" if self.score > 0 else "wrong"


def build_item_results(
    items: Sequence[Item],
    prompts: Mapping[str, str],
    answers: Mapping[str, Answer],
    score: Score,
) -> list[ItemResult]:
    """Put together what is known of each item."""
    return [_sample(item, prompts.get(item.id, ""), answers[item.id], score) for item in items]


def _sample(item: Item, prompt: str, answer: Answer, score: Score) -> ItemResult:
    """Put together what is known of one item."""
    return ItemResult(
        id=item.id,
        kind=item.category,
        slices=list(item.slices),
        images=list(item.conversation.images),
        question=item.conversation.turns[-1].text.strip(),
        prompt=prompt,
        answer=None if answer.error else answer.text,
        extracted=score.parsed_answers.get(item.id, answer.text),
        references=list(item.references),
        choices=list(item.choices),
        score=None if answer.error else score.item_scores.get(item.id),
        parse_error=score.unparsed.get(item.id, ""),
        failed=answer.error,
        option_log_likelihoods=[list(each) for each in answer.option_log_likelihoods],
    )


def write_samples(file: Path, samples: Sequence[ItemResult]) -> None:
    """Write a line of JSON for each sample.

    Raises:
        OutputError: The file cannot be written.
    """
    write_atomic(file, (f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in samples))


def read_samples(file: Path) -> list[ItemResult]:
    """Read what `write_samples` wrote.

    Raises:
        InputError: The file cannot be read, or is another.
    """
    samples = []
    for where, record in read_records(file):
        try:
            samples.append(ItemResult(**record))  # type: ignore[arg-type] # checked by the constructor
        except TypeError:
            raise InputError(f"{where} is no line of an evaluation's answers.jsonl") from None
    return samples
