"""Items and what became of them in, a line of `answers.jsonl` for each out, and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from caldera.errors import InputError
from caldera.evaluation.answering.answerer import Answer
from caldera.evaluation.benchmark import Item, Score
from caldera.record_files import iterate_records
from caldera.storage import write_whole

State = Literal["right", "partly right", "wrong", "unread", "failed", "unmarked"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One item with its answer and mark."""

    id: str
    kind: str
    slices: list[str]
    pictures: list[str]
    question: str
    """What the user says last."""

    asked: str
    """The whole prompt, exactly as it was sent or given to the model."""

    answer: str | None
    """None where it failed."""

    extracted: str
    """What of the answer was compared."""

    references: list[str]
    choices: list[str]
    mark: float | None
    """What the answer was worth, between 0 and 1; None where the benchmark only scores all together, or it failed."""

    unread: str
    """Why the answer could not be read as what was asked for; empty where it could."""

    failed: str
    """Why there is no answer; empty where there is one."""

    weights: list[list[float]]
    """Of each option: its log-likelihood in nats, and its tokens; empty where answers are written."""

    @property
    def state(self) -> State:
        """How it went, in a word."""
        if self.failed:
            return "failed"
        if self.unread:
            return "unread"
        if self.mark is None:
            return "unmarked"
        return "right" if self.mark >= 1 else "partly right" if self.mark > 0 else "wrong"


def samples_of(
    items: Sequence[Item],
    prompts: Mapping[str, str],
    answers: Mapping[str, Answer],
    score: Score,
) -> list[Sample]:
    """Put together what is known of each item."""
    return [_sample(item, prompts.get(item.id, ""), answers[item.id], score) for item in items]


def _sample(item: Item, prompt: str, answer: Answer, score: Score) -> Sample:
    """Put together what is known of one item."""
    return Sample(
        id=item.id,
        kind=item.kind,
        slices=list(item.slices),
        pictures=list(item.conversation.pictures),
        question=item.conversation.turns[-1].text.strip(),
        asked=prompt,
        answer=None if answer.failed else answer.text,
        extracted=score.extracted.get(item.id, answer.text),
        references=list(item.references),
        choices=list(item.choices),
        mark=None if answer.failed else score.marks.get(item.id),
        unread=score.unread.get(item.id, ""),
        failed=answer.failed,
        weights=[list(each) for each in answer.weights],
    )


def write_samples(file: Path, samples: Sequence[Sample]) -> None:
    """Write a line of JSON for each sample.

    Raises:
        OutputError: The file cannot be written.
    """
    write_whole(file, (f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in samples))


def read_samples(file: Path) -> list[Sample]:
    """Read what `write_samples` wrote.

    Raises:
        InputError: The file cannot be read, or is another.
    """
    samples = []
    for where, record in iterate_records(file):
        try:
            samples.append(Sample(**record))  # type: ignore[arg-type] # checked by the constructor
        except TypeError:
            raise InputError(f"{where} is no line of an evaluation's answers.jsonl") from None
    return samples
