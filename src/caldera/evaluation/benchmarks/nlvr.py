"""NLVR: is a sentence true of a drawing of colored shapes? Each sentence comes with several drawings.

A file has one line per pair: `image`, `sentence`, `label` true or false, and optionally `identifier`; the id defaults
to the name of the image. Consistency counts a sentence only if the answers about all its drawings are correct.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from caldera.errors import InputError
from caldera.evaluation.answer_parsing import parse_yes_no
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    ScoredItems,
    Sources,
    mean,
    score_items,
    to_percent,
)
from caldera.evaluation.benchmarks.short_answers import short_answer_turn
from caldera.evaluation.files import check_unique, read_records, require_fields

_IMAGE_NAME = re.compile(r"\w+-(\d+)-\d+-\d+")
"""NLVR's image names: split, sentence, drawing, order of its boxes."""


def _score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Compare yes/no or true/false; an answer that is neither is wrong, and counted."""
    parsed = {item.id: parse_yes_no(answers[item.id]) for item in items}
    scores = {item.id: float(parsed[item.id] == item.references[0]) for item in items}
    unparsed = {name: "neither yes nor no" for name, word in parsed.items() if word is None}
    by_sentence: dict[str, list[float]] = defaultdict(list)
    for item in items:
        by_sentence[item.question_type].append(scores[item.id])
    num_repeated = sum(len(group) > 1 for group in by_sentence.values())
    score = score_items(items, scores, unparsed)
    metrics = {"accuracy": to_percent(score.overall)}
    if num_repeated:
        metrics |= {"consistency": to_percent(mean(map(min, by_sentence.values())))}
    metrics |= {f"accuracy_{name}": to_percent(value) for name, value in score.by_category.items()}
    metrics |= {
        "questions": len(scores),
        "sentences": len(by_sentence),
        "sentences_with_several_drawings": num_repeated,
        "parse_failures": len(unparsed),
    }
    return replace(score, metrics=metrics)


def load_questions(sources: Sources) -> ScoredItems:
    """Load a split; an item's category is its label, its type the sentence, by NLVR's number if known."""
    path = sources.questions or sources.require_annotations(
        "NLVR's lines of image, sentence and label"
    )
    items: list[Item] = []
    for location, record in read_records(path):
        require_fields(record, ("image", "sentence", "label"), location)
        label = str(record["label"]).lower()
        if label not in ("true", "false"):
            raise InputError(
                f"{location}: the label should be true or false, got {record['label']!r}"
            )
        image_name = Path(record["image"]).stem
        name = str(record.get("question_id", image_name))
        sentence = str(record["sentence"]).strip()
        question = f'Is this sentence true of the picture? "{sentence}"'
        conversation = short_answer_turn(name, record["image"], question)
        match = _IMAGE_NAME.fullmatch(image_name)
        sentence_id = match[1] if match else sentence
        answer = "yes" if label == "true" else "no"
        items.append(Item(name, label, sentence_id, conversation, (answer,), group=sentence_id))
    check_unique((item.id for item in items), path)
    return ScoredItems("nlvr", items, _score)


NLVR = BenchmarkSpec(
    name="nlvr",
    title="NLVR",
    measures="counting, comparing and locating drawn shapes: is a sentence true of an image",
    description="300 of the 5,934 pairs of dev are among the project's test data (lil.nlp.cornell.edu/nlvr)",
    chance={"accuracy": 55.0},
    primary_metric="accuracy",
    required_files="--questions, lines of image, sentence and label",
    load=load_questions,
)
