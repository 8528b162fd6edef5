"""LLaVA-Bench, In-the-Wild and COCO: open answers that a judge compares with those of a text-only model.

Both are from arXiv 2304.08485, section 5.1. Papers quote the relative score: 100 times the mean score of the answers
over that of the references.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caldera.errors import InputError
from caldera.evaluation.answer_files import read_answers
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    JudgeSpec,
    Score,
    ScoredItems,
    Sources,
    check_answers,
)
from caldera.evaluation.benchmarks.short_answers import question_turn
from caldera.evaluation.files import join_names, read_records, require_fields
from caldera.evaluation.judging.protocols import (
    DESCRIPTION,
    FIVE_SENTENCES,
    PAIR_PROTOCOLS,
    PAPER_PROTOCOL,
    JudgeCase,
)
from caldera.evaluation.judging.review_files import PREFIX, format_reviews, read_reviews
from caldera.evaluation.judging.scores import average_runs, judged_benchmark, relative_scores
from caldera.evaluation.judging.verdicts import Verdict

_CATEGORIES = ("conv", "detail", "complex")


def _read_questions(sources: Sources) -> dict[str, dict[str, Any]]:
    """Return the question records by id."""
    path = sources.require_questions("the official questions (question_id, image, text, category)")
    questions: dict[str, dict[str, Any]] = {}
    for location, record in read_records(path):
        require_fields(record, ("question_id", "image", "text", "category"), location)
        if record["category"] not in _CATEGORIES:
            raise InputError(
                f"{location}: category is {record['category']!r}; expected one of {', '.join(_CATEGORIES)}"
            )
        if (name := str(record["question_id"])) in questions:
            raise InputError(f"{location}: question_id {name} occurs twice")
        questions[name] = record
    return questions


def _load(sources: Sources, name: str) -> ScoredItems:
    """Load the questions; with --annotations, the reference answers are the items' references."""
    references = read_answers(sources.annotations) if sources.annotations else {}
    items = []
    for key, record in _read_questions(sources).items():
        items.append(
            Item(
                id=key,
                category=record["category"],
                question_type=record["category"],
                conversation=question_turn(key, record["image"], record["text"]),
                references=(references[key],) if key in references else (),
            )
        )
    return judged_benchmark(name, items, PAPER_PROTOCOL.parse, relative_scores, "overall")


def _read_contexts(sources: Sources) -> dict[str, tuple[str, str]]:
    """Return each image's description and the explanation of that description, by the image's file name.

    In-the-Wild has a `caption`; COCO has `captions` and `instances`, formatted as LLaVA does: one caption per line, a
    blank line, `category: [box]` for each object.
    """
    path = sources.require_captions(
        "the official descriptions: context.jsonl (In-the-Wild), caps_boxes_coco2014_val_80.jsonl (COCO)"
    )
    contexts: dict[str, tuple[str, str]] = {}
    for location, record in read_records(path):
        require_fields(record, ("image",), location)
        if "caption" in record:
            contexts[record["image"]] = (str(record["caption"]), DESCRIPTION)
            continue
        require_fields(record, ("captions", "instances"), location)
        boxes = [f"{instance['category']}: {instance['bbox']}" for instance in record["instances"]]
        text = "\n".join([*map(str, record["captions"]), "", *boxes])
        contexts[record["image"]] = (text, FIVE_SENTENCES)
    return contexts


def _build_cases(sources: Sources, answers: Mapping[str, str]) -> list[JudgeCase]:
    """Combine each answer with its question, context and reference."""
    check_answers(_load(sources, "llava-bench").items, answers)
    questions, contexts = _read_questions(sources), _read_contexts(sources)
    references_path = sources.require_annotations(
        "the reference answers, such as answers_gpt4.jsonl"
    )
    references = read_answers(references_path)
    for required, present, path in (
        (set(questions), set(references), references_path),
        ({record["image"] for record in questions.values()}, set(contexts), sources.captions),
    ):
        if missing := required - present:
            raise InputError(f"{path} lacks {len(missing)} entries: {join_names(missing)}")
    cases = []
    for key, record in questions.items():
        context, description = contexts[record["image"]]
        cases.append(
            JudgeCase(
                id=key,
                category=record["category"],
                question=record["text"],
                context=context,
                context_description=description,
                reference=references[key],
                candidate=answers[key],
            )
        )
    return cases


def _score_files(sources: Sources, path: Path) -> Score:
    """Score review files; if questions are given, each must be judged."""
    scores = []
    for run in read_reviews(path):
        if sources.questions:
            items = _load(sources, "llava-bench").items
            check_answers(items, {verdict.id: verdict.text for verdict in run.verdicts})
        score = relative_scores(run.verdicts)
        score.metrics.update(run.metrics)
        scores.append(score)
    return average_runs(scores, "overall")


def _spec(name: str, title: str, measures: str, description: str, prefix: str) -> BenchmarkSpec:
    """Return the definition of either set; `prefix` precedes categories in reviews."""

    def format_files(runs: Sequence[Sequence[Verdict]], judge: str) -> Mapping[str, str]:
        return {
            f"reviews/run{number}.jsonl": format_reviews(verdicts, judge, prefix)
            for number, verdicts in enumerate(runs, start=1)
        }

    return BenchmarkSpec(
        name=name,
        title=title,
        measures=measures,
        description=description,
        chance={},
        primary_metric="overall",
        load=lambda sources: _load(sources, name),
        score_official_files=_score_files,
        required_files="none; --answers are the judge's reviews, which `caldera evaluate judge` writes; "
        "--questions to check that none is missing",
        judging=JudgeSpec(
            protocols=PAIR_PROTOCOLS,
            build_cases=_build_cases,
            score=relative_scores,
            files=format_files,
        ),
    )


LLAVA_BENCH = _spec(
    "llava-bench",
    "LLaVA-Bench (In-the-Wild)",
    "Open answers about 24 varied images, compared with those of a text-only model that knew a description.",
    "60 questions (17 conv, 15 detail, 28 complex): huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
    PREFIX,
)

LLAVA_BENCH_COCO = _spec(
    "llava-bench-coco",
    "LLaVA-Bench (COCO)",
    "Open answers about 30 everyday photos, compared with those of a text-only model that knew captions and boxes.",
    "90 questions (30 of each category): github.com/haotian-liu/LLaVA, playground/data/coco2014_val_qa_eval",
    "",
)
