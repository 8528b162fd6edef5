"""LLaVA-Bench, In-the-Wild and COCO: open answers that a judge compares with a text-only model's.

Both are of arXiv 2304.08485, section 5.1. The relative score is what papers quote: 100 times the mean score of the
answers over that of the references.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import InputError
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    JudgeSpec,
    Score,
    Sources,
    check_answers,
)
from caldera.evaluation.files import join_names, read_answers, read_records, require_fields
from caldera.evaluation.judging.protocols import (
    DESCRIPTION,
    FIVE_SENTENCES,
    PAIR_PROTOCOLS,
    JudgeCase,
)
from caldera.evaluation.judging.review_files import PREFIX, format_reviews, read_reviews
from caldera.evaluation.judging.scores import average_runs, relative_scores
from caldera.evaluation.judging.verdicts import Verdict, parse_verdict

_CATEGORIES = ("conv", "detail", "complex")


@dataclass(frozen=True, slots=True)
class LlavaBench:
    """Its questions; scores are those of a judge's replies."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 1024

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score what a judge replied about each answer, the reference shown first.

        Raises:
            InputError: Replies are missing, or belong to no item.
        """
        check_answers(self.items, answers)
        protocol = PAIR_PROTOCOLS["paper"]
        verdicts = [
            parse_verdict(item.id, item.category, answers[item.id], protocol.read)
            for item in self.items
        ]
        return average_runs([relative_scores(verdicts)], "overall")


def _questions(sources: Sources) -> dict[str, dict[str, Any]]:
    """Read the questions by id.

    Raises:
        InputError: The file is no question file.
    """
    path = sources.require_questions("the official questions (question_id, image, text, category)")
    questions: dict[str, dict[str, Any]] = {}
    for where, record in read_records(path):
        require_fields(record, ("question_id", "image", "text", "category"), where)
        if record["category"] not in _CATEGORIES:
            raise InputError(
                f"{where}: category is {record['category']!r}; expected one of {', '.join(_CATEGORIES)}"
            )
        if (name := str(record["question_id"])) in questions:
            raise InputError(f"{where}: question_id {name} is there twice")
        questions[name] = record
    return questions


def _load(sources: Sources, name: str) -> LlavaBench:
    """Make items of the questions; with --truth, the reference answers stand in them."""
    questions = _questions(sources)
    truth = read_answers(sources.annotations) if sources.annotations else {}
    items = [
        Item(
            id=key,
            category=record["category"],
            question_type=record["category"],
            conversation=Conversation(
                key, (Turn("user", (ImageRef(record["image"]), f"\n{record['text']}")),)
            ),
            references=(truth[key],) if key in truth else (),
        )
        for key, record in questions.items()
    ]
    return LlavaBench(name, items)


def _contexts(sources: Sources) -> dict[str, tuple[str, str]]:
    """Return what is in each image and what that text is, by the image's file name.

    In-the-Wild has a `caption`; COCO has `captions` and `instances`, written as LLaVA does: captions one a line, a
    blank line, `category: [box]` for each thing.
    """
    path = sources.require_captions(
        "the official descriptions: context.jsonl (In-the-Wild), caps_boxes_coco2014_val_80.jsonl (COCO)"
    )
    contexts: dict[str, tuple[str, str]] = {}
    for where, record in read_records(path):
        require_fields(record, ("image",), where)
        if "caption" in record:
            contexts[record["image"]] = (str(record["caption"]), DESCRIPTION)
            continue
        require_fields(record, ("captions", "instances"), where)
        boxes = [f"{thing['category']}: {thing['bbox']}" for thing in record["instances"]]
        text = "\n".join([*map(str, record["captions"]), "", *boxes])
        contexts[record["image"]] = (text, FIVE_SENTENCES)
    return contexts


def _cases(sources: Sources, answers: Mapping[str, str]) -> list[JudgeCase]:
    """Put each answer beside its question, context and reference.

    Raises:
        InputError: Answers, references or contexts are missing, or answers belong to no question.
    """
    bench = _load(sources, "llava-bench")
    check_answers(bench.items, answers)
    questions, contexts = _questions(sources), _contexts(sources)
    truth_path = sources.require_annotations("the reference answers, such as answers_gpt4.jsonl")
    references = read_answers(truth_path)
    for wanted, there, path in (
        (set(questions), set(references), truth_path),
        ({record["image"] for record in questions.values()}, set(contexts), sources.captions),
    ):
        if missing := wanted - there:
            raise InputError(f"{path} has nothing about {len(missing)}: {join_names(missing)}")
    cases = []
    for key, record in questions.items():
        context, context_is = contexts[record["image"]]
        cases.append(
            JudgeCase(
                id=key,
                category=record["category"],
                question=record["text"],
                context=context,
                context_description=context_is,
                reference=references[key],
                candidate=answers[key],
            )
        )
    return cases


def _score_files(sources: Sources, path: Path) -> Score:
    """Score review files; with questions, each must be judged.

    Raises:
        InputError: They are broken, or judge other answers than were asked for.
    """
    scores = []
    for run in read_reviews(path):
        if sources.questions:
            items = _load(sources, "llava-bench").items
            check_answers(items, {verdict.id: verdict.text for verdict in run.verdicts})
        score = relative_scores(run.verdicts)
        score.metrics.update(run.figures)
        scores.append(score)
    return average_runs(scores, "overall")


def _judging(prefix: str) -> JudgeSpec:
    """Return how either set is judged; reviews have the `prefix` before categories."""

    def files(runs: Sequence[Sequence[Verdict]], judge: str) -> Mapping[str, str]:
        return {
            f"reviews/run{number}.jsonl": format_reviews(verdicts, judge, prefix)
            for number, verdicts in enumerate(runs, start=1)
        }

    return JudgeSpec(
        protocols=PAIR_PROTOCOLS, build_cases=_cases, score=relative_scores, files=files
    )


_FILES = (
    "none; --answers are the judge's reviews, which `caldera evaluate judge` writes; "
    "--questions to see that none is missing"
)

LLAVA_BENCH = BenchmarkSpec(
    name="llava-bench",
    title="LLaVA-Bench (In-the-Wild)",
    measures="Open answers about 24 varied pictures, next to a text-only model's that knew a description.",
    description="60 questions (17 conv, 15 detail, 28 complex): "
    "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
    chance={},
    primary_metric="overall",
    load=lambda sources: _load(sources, "llava-bench"),
    score_answer_files=_score_files,
    required_files=_FILES,
    judging=_judging(PREFIX),
)

LLAVA_BENCH_COCO = BenchmarkSpec(
    name="llava-bench-coco",
    title="LLaVA-Bench (COCO)",
    measures="Open answers about 30 everyday photos, next to a text-only model's that knew captions and boxes.",
    description="90 questions (30 of each category): github.com/haotian-liu/LLaVA, playground/data/coco2014_val_qa_eval",
    chance={},
    primary_metric="overall",
    load=lambda sources: _load(sources, "llava-bench-coco"),
    score_answer_files=_score_files,
    required_files=_FILES,
    judging=_judging(""),
)
