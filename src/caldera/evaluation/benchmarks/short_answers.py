"""Questions that several people answered in a word or phrase, scored by mean accuracy: overall and by type."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import InputError
from caldera.evaluation.answer_files import AnswerRecord
from caldera.evaluation.benchmark import Item, Score, check_answers, mean
from caldera.evaluation.files import join_names
from caldera.evaluation.vqa_accuracy import SoftAccuracy
from caldera.instructions.request_phrases import SHORT_ANSWER


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortAnswers:
    """Items with people's answers as references; an answer's accuracy lies between 0 and 1."""

    name: str
    items: Sequence[Item]
    accuracy: SoftAccuracy
    normalize: Callable[[str], str] = str
    """Applied to an answer before it is compared."""

    overall: str = "accuracy"
    """The authors' name of the mean."""

    groups: Mapping[str, str] = field(default_factory=dict)
    """Slice prefix by the authors' name of the means by type; "" merges these into the top level."""

    max_new_tokens: int = 128

    def score(self, answers: Mapping[str, str]) -> Score:
        """Return the mean accuracy, overall and by type. An empty answer scores 0 and counts as unparsed."""
        check_answers(self.items, answers)
        if unknown := [item.id for item in self.items if not item.references]:
            raise InputError(
                f"{len(unknown)} questions have no right answers in the files given: {join_names(unknown)}; "
                "give --annotations of this split (those of test splits are not published)"
            )
        scores = {
            item.id: self.accuracy(self.normalize(answers[item.id]), item.references)
            for item in self.items
        }
        unparsed = {
            item.id: "the answer is empty; it counts as wrong"
            for item in self.items
            if not answers[item.id].strip()
        }
        counts = Counter(item.category for item in self.items)
        metrics = self._means(scores) | self._majority_baseline()
        metrics |= {"questions": len(scores), "parse_failures": len(unparsed)}
        if 0 < len(unparsed) < len(scores):
            parsed = _percent(score for name, score in scores.items() if name not in unparsed)
            metrics["without_parse_failures"] = {self.overall: parsed}
        by_category = {
            category: mean(scores[item.id] for item in self.items if item.category == category)
            for category in sorted(counts)
        }
        return Score(mean(scores.values()), by_category, dict(counts), metrics, scores, unparsed)

    def _means(self, scores: Mapping[str, float]) -> dict[str, Any]:
        """Return means times 100 with two decimals, as the official evaluators round them."""
        metrics: dict[str, Any] = {self.overall: _percent(scores.values())}
        for name, prefix in self.groups.items():
            by_type: dict[str, list[float]] = {}
            for item in self.items:
                for group in item.slices:
                    if group.startswith(prefix):
                        by_type.setdefault(group.removeprefix(prefix), []).append(scores[item.id])
            percents = {group: _percent(by_type[group]) for group in sorted(by_type)}
            metrics |= {name: percents} if name else percents
        return metrics

    def _majority_baseline(self) -> dict[str, Any]:
        """Return the score of always giving the most common answer."""
        counts = Counter(reference for item in self.items for reference in item.references)
        answer = counts.most_common(1)[0][0]
        scores = [self.accuracy(self.normalize(answer), item.references) for item in self.items]
        return {"blind": _percent(scores), "blind_answer": answer}


def _percent(scores: Iterable[float]) -> float:
    return round(100 * mean(scores), 2)


def normalizer_for(
    answers: Sequence[AnswerRecord], normalize: Callable[[str], str]
) -> Callable[[str], str]:
    """Return the function that normalizes answers; those of a submitted file are compared verbatim."""
    return str if all(answer.submitted for answer in answers) else normalize


def question_turn(name: str, image: str, question: str) -> Conversation:
    """Return a question about one image; `question` includes the answering instruction."""
    return Conversation(name, (Turn("user", (ImageRef(image), f"\n{question}")),))


def short_answer_turn(name: str, image: str, question: str) -> Conversation:
    """Return a question about one image with LLaVA-1.5's instruction to answer briefly (P2, table 8)."""
    return question_turn(name, image, f"{question}\n{SHORT_ANSWER}")
