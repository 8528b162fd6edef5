"""Items and what became of them in, a line of `answers.jsonl` for each out, and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from caldera.errors import InputError
from caldera.evaluation.answering.answerer import Answer
from caldera.evaluation.benchmark import Item, Score
from caldera.record_files import read_records
from caldera.storage import write_atomic

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
