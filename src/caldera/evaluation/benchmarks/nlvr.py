"""NLVR: whether a sentence is true of a drawing of colored shapes; the same sentence comes with several drawings.

A file has a line for each pair: `image`, `sentence`, `label` true or false, and as a name `identifier`, or the name of
the image. Consistency counts a sentence only where it is right about all its drawings.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import InputError
from caldera.evaluation.answer_parsing import parse_yes_no
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    Sources,
    check_answers,
    mean,
    score_by_item_id,
    scores_by_group,
    to_percent,
)
from caldera.evaluation.files import check_unique, read_records, require_fields
from caldera.instructions.request_phrases import SHORT_ANSWER

_NAME = re.compile(r"\w+-(\d+)-\d+-\d+")
"""NLVR's images are called by split, sentence, drawing, and order of its boxes."""


@dataclass(frozen=True, slots=True)
class Nlvr:
    """Sentences about drawings; an item's kind is its label, its form the sentence, by NLVR's number if it has one."""

    items: Sequence[Item]
    name: str = "nlvr"
    max_new_tokens: int = 16

    def score(self, answers: Mapping[str, str]) -> Score:
        """Compare yes and no, or true and false; what is neither is wrong, and counted.

        Raises:
            InputError: Answers are missing, or belong to no item.
        """
        check_answers(self.items, answers)
        said = {item.id: parse_yes_no(answers[item.id]) for item in self.items}
        marks = {item.id: float(said[item.id] == item.references[0]) for item in self.items}
        unread = {name: "says neither yes nor no" for name, word in said.items() if word is None}
        sentences: dict[str, list[float]] = defaultdict(list)
        for item in self.items:
            sentences[item.question_type].append(marks[item.id])
        groups = scores_by_group(self.items, marks)
        several = [min(group) for group in sentences.values() if len(group) > 1]
        by_category = {name: mean(group.values()) for name, group in groups.items()}
        figures = {"accuracy": to_percent(mean(marks.values()))}
        if several:
            figures |= {"consistency": to_percent(mean(map(min, sentences.values())))}
        figures |= {f"accuracy_{name}": to_percent(share) for name, share in by_category.items()}
        figures |= {
            "questions": len(marks),
            "sentences": len(sentences),
            "sentences_with_several_drawings": len(several),
            "parse_failures": len(unread),
        }
        counts = {name: len(group) for name, group in groups.items()}
        return Score(mean(marks.values()), by_category, counts, figures, marks, unread)


def load_questions(sources: Sources) -> Nlvr:
    """Read the pairs of a split.

    Raises:
        UsageError: No file was given.
        InputError: It is missing, broken, or has a pair twice.
    """
    path = sources.questions or sources.require_annotations(
        "NLVR's lines of image, sentence and label"
    )
    items: list[Item] = []
    for where, record in read_records(path):
        require_fields(record, ("image", "sentence", "label"), where)
        label = str(record["label"]).lower()
        if label not in ("true", "false"):
            raise InputError(f"{where}: the label should be true or false, got {record['label']!r}")
        name = str(record.get("question_id", Path(record["image"]).stem))
        sentence = str(record["sentence"]).strip()
        question = f'Is this sentence true of the picture? "{sentence}"\n{SHORT_ANSWER}'
        asked = Conversation(name, (Turn("user", (ImageRef(record["image"]), f"\n{question}")),))
        drawn = _NAME.fullmatch(Path(record["image"]).stem)
        form = drawn[1] if drawn else sentence
        truth = "yes" if label == "true" else "no"
        items.append(Item(name, label, form, asked, (truth,), group=form))
    check_unique((item.id for item in items), path)
    return Nlvr(items)


NLVR = BenchmarkSpec(
    name="nlvr",
    title="NLVR",
    measures="counting, comparing and placing of drawn shapes: is a sentence true of a picture",
    description="300 of the 5,934 pairs of dev are among the project's test data (lil.nlp.cornell.edu/nlvr)",
    chance={"accuracy": 55.0},
    primary_metric="accuracy",
    required_files="--questions, lines of image, sentence and label",
    load=load_questions,
    score_answer_files=score_by_item_id(load_questions),
)
