"""Questions that several people answered in a word or phrase: items in, a mean worth out, over all and by type."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import InputError
from caldera.evaluation.benchmark import Item, Score, check_answers, mean
from caldera.evaluation.files import join_names
from caldera.evaluation.vqa_accuracy import SoftAccuracy
from caldera.instructions.request_phrases import SHORT_ANSWER


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortAnswers:
    """Items with what people said of each; an answer is worth something between 0 and 1 beside that."""

    name: str
    items: Sequence[Item]
    accuracy: SoftAccuracy
    normalize: Callable[[str], str] = str
    """What is done to an answer before; nothing by default."""

    overall: str = "accuracy"
    """What the authors call the mean."""

    groups: Mapping[str, str] = field(default_factory=dict)
    """What the authors call means by type, and how slices of that type begin; "" puts them beside the overall one."""

    max_new_tokens: int = 128

    def score(self, answers: Mapping[str, str]) -> Score:
        """Return the mean worth, over all and by type. An empty answer is worth nothing, and listed as unread.

        Raises:
            InputError: Answers are missing or belong to no item, or what is right is not known.
        """
        check_answers(self.items, answers)
        if unknown := [item.id for item in self.items if not item.references]:
            raise InputError(
                f"{len(unknown)} questions have no right answers in the files given: {join_names(unknown)}; "
                "give --truth of this split (those of test splits are not published)"
            )
        marks = {
            item.id: self.accuracy(self.normalize(answers[item.id]), item.references)
            for item in self.items
        }
        unread = {
            item.id: "the answer is empty; it counts as wrong"
            for item in self.items
            if not answers[item.id].strip()
        }
        kinds = sorted({item.category for item in self.items})
        figures = self._figures(marks) | self._majority_baseline()
        figures |= {"questions": len(marks), "parse_failures": len(unread)}
        if 0 < len(unread) < len(marks):
            read = _percent(mark for name, mark in marks.items() if name not in unread)
            figures["without_parse_failures"] = {self.overall: read}
        return Score(
            mean(marks.values()),
            {kind: mean(marks[i.id] for i in self.items if i.category == kind) for kind in kinds},
            dict(Counter(item.category for item in self.items)),
            figures,
            marks,
            unread,
        )

    def _figures(self, marks: Mapping[str, float]) -> dict[str, Any]:
        """Return means times 100 with two places, as the official evaluators round them."""
        figures: dict[str, Any] = {self.overall: _percent(marks.values())}
        for name, beginning in self.groups.items():
            worth: dict[str, list[float]] = {}
            for item in self.items:
                for group in item.slices:
                    if group.startswith(beginning):
                        worth.setdefault(group.removeprefix(beginning), []).append(marks[item.id])
            means = {group: _percent(worth[group]) for group in sorted(worth)}
            figures |= {name: means} if name else means
        return figures

    def _majority_baseline(self) -> dict[str, Any]:
        """Return what the most common answer would come to if it were always given: a floor to compare with."""
        said = Counter(one for item in self.items for one in item.references)
        answer = said.most_common(1)[0][0]
        worth = [self.accuracy(self.normalize(answer), item.references) for item in self.items]
        return {"blind": _percent(worth), "blind_answer": answer}


def _percent(worth: Iterable[float]) -> float:
    return round(100 * mean(worth), 2)


def question_turn(name: str, image: str, question: str) -> Conversation:
    """Ask one question about one image; it holds the sentence that says how to answer."""
    return Conversation(name, (Turn("user", (ImageRef(image), f"\n{question}")),))


def short_answer_turn(name: str, image: str, question: str) -> Conversation:
    """Ask one question about one image with the sentence that LLaVA-1.5 ends it with (P2, table 8)."""
    return question_turn(name, image, f"{question}\n{SHORT_ANSWER}")
