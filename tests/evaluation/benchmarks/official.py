"""Tiny files in every benchmark's official layout: two or more questions each, about images that a test creates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caldera.evaluation.benchmark import BenchmarkSpec, Score, Sources
from caldera.evaluation.benchmarks.mme import SIZES

Lines = list[dict[str, Any]]


def score_texts(
    spec: BenchmarkSpec, folder: Path, questions: Path, answers: dict[str, str]
) -> Score:
    """Score texts by id."""
    path = _json(folder / "answers.json", answers)
    return spec.score_answer_files(Sources(questions=questions), path)


def _json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def _lines(path: Path, lines: Lines) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def science_qa(folder: Path) -> Sources:
    """Three problems of the test split, one with an image."""
    problems = {
        str(n): {
            "question": f"Which of {n}?", "choices": ["red", "green"], "answer": n % 2, "hint": "",
            "image": "image.png" if n == 1 else None, "subject": "natural science", "grade": "grade3",
            "split": "test",
        }
        for n in range(1, 4)
    }  # fmt: skip
    _json(folder / "pid_splits.json", {"test": list(problems)})
    return Sources(questions=_json(folder / "problems.json", problems))


def pope(folder: Path) -> Sources:
    """Two questions about each of two images."""
    lines = [
        {"question_id": n, "image": f"{n // 2}.jpg", "text": f"Is there a {n}?", "label": ("yes", "no")[n % 2]}
        for n in range(4)
    ]  # fmt: skip
    return Sources(annotations=_lines(folder / "coco_pope_random.json", lines))


def mme(folder: Path) -> Sources:
    """All fourteen sub-tasks with two images, whose second questions come last."""
    texts = folder / "texts"
    texts.mkdir()
    for subtask in SIZES:
        rows = [f"{n % 2}.png\tIs it {n}?\t{('Yes', 'No')[n // 2]}" for n in range(4)]
        (texts / f"{subtask}.txt").write_text("\n".join(rows))
    return Sources(annotations=texts)


def mmbench(folder: Path) -> Sources:
    """Three questions of two choices; their second rows come last."""
    rows = ["index\tquestion\thint\tA\tB\tanswer\tcategory\tl2-category"]
    for rotation in range(2):
        choices = ("green\tred", "red\tgreen")[rotation]
        rows += [
            f"{1_000_000 * rotation + n}\tWhich of {n}?\tnan\t{choices}\t{'AB'[rotation]}\tcolor\tseeing"
            for n in range(7, 10)
        ]
    (folder / "dev.tsv").write_text("\n".join(rows))
    return Sources(questions=folder / "dev.tsv")


def seed_bench(folder: Path) -> Sources:
    """A question about an image and one about a video."""
    questions = [
        {
            "question_id": name, "question": f"What of {name}?", "choice_a": "a", "choice_b": "b", "choice_c": "c",
            "choice_d": "d", "answer": letter, "question_type_id": n, "data_type": data_type, "data_id": f"{name}.jpg",
        }
        for n, (name, letter, data_type) in enumerate((("1", "A", "image"), ("v0", "D", "video")))
    ]  # fmt: skip
    kinds = {"Scene": 0, "Action": 1}
    return Sources(
        questions=_json(
            folder / "SEED-Bench.json", {"questions": questions, "question_type": kinds}
        )
    )


def mmmu(folder: Path) -> Sources:
    """An open question, then two choice questions."""
    questions = [
        {"id": f"validation_Math_{n}", "question": f"What is {n} in <image 1>?", "options": options,
         "answer": answer, "question_type": kind}
        for n, (options, answer, kind) in enumerate(
            (([], "7", "open"), ("['a', 'b']", "A", "multiple-choice"), ("['a', 'b']", "B", "multiple-choice"))
        )
    ]  # fmt: skip
    return Sources(questions=_json(folder / "val.json", questions))


def nlvr(folder: Path) -> Sources:
    """Two sentences with two drawings each."""
    lines = [
        {"image": f"dev-{n % 2}-{n}-0.png", "sentence": f"There is {n % 2}", "label": ("true", "false")[n // 2]}
        for n in range(4)
    ]  # fmt: skip
    return Sources(questions=_lines(folder / "dev.jsonl", lines))


def vqav2(folder: Path) -> Sources:
    """Three questions about two images."""
    records = [{"question_id": n, "image_id": 4 + n % 2, "question": f"What is {n}?"} for n in range(3)]  # fmt: skip
    annotations: Lines = [
        {
            "question_id": n, "image_id": 4 + n % 2, "answer_type": "other", "question_type": "what is",
            "multiple_choice_answer": "dog",
            "answers": [{"answer": "dog", "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)],
        }
        for n in range(3)
    ]  # fmt: skip
    questions = _json(folder / "q.json", {"data_subtype": "val2014", "questions": records})
    return Sources(
        questions=questions, annotations=_json(folder / "a.json", {"annotations": annotations})
    )


def gqa(folder: Path) -> Sources:
    """Three questions about one image."""
    types = {"structural": "query", "semantic": "attr", "detailed": "x"}
    questions = {
        str(n): {"imageId": "n1", "question": f"What of {n}?", "answer": "red", "isBalanced": True, "types": types}
        for n in range(3)
    }  # fmt: skip
    return Sources(questions=_json(folder / "testdev_balanced_questions.json", questions))


def textvqa(folder: Path) -> Sources:
    """Two questions about one image."""
    data = [
        {"question_id": n, "image_id": "003a", "question": f"brand {n}?", "answers": ["dakota"] * 10}
        for n in range(2)
    ]  # fmt: skip
    content = {"dataset_type": "val", "data": data}
    return Sources(annotations=_json(folder / "TextVQA_0.5.1_val.json", content))


def vizwiz(folder: Path) -> Sources:
    """A question about each of two images."""
    records = [
        {"image": f"VizWiz_val_0000000{n}.jpg", "question": f"What is {n}?", "answer_type": "other", "answerable": 1,
         "answers": [{"answer": "soup", "answer_confidence": "yes"}] * 10}
        for n in range(2)
    ]  # fmt: skip
    return Sources(annotations=_json(folder / "val.json", records))


def captions(folder: Path) -> Sources:
    """Two images with a caption each."""
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(2)],
        "annotations": [
            {"id": n, "image_id": n, "caption": ("a red dog sleeps here", "two cats eat a fish")[n]}
            for n in range(2)
        ],
    }  # fmt: skip
    return Sources(annotations=_json(folder / "captions_val2014.json", content))


def custom(folder: Path) -> Sources:
    """A question of each rule that needs no judge."""
    lines: Lines = [
        {"question": "Which colour?", "answer": "red", "image": "0.jpg"},
        {"question": "What does it say?", "answer": "Exit", "match": "contains", "image": "1.jpg"},
        {"question": "Which?", "answer": "dog", "choices": ["cat", "dog"]},
    ]
    return Sources(questions=_lines(folder / "custom.jsonl", lines))


def llava_bench(folder: Path) -> Sources:
    """A question of each category, with references and contexts."""
    lines: Lines = [
        {
            "question_id": n,
            "image": f"{n}.jpg",
            "text": f"What of {n}?",
            "category": category,
        }
        for n, category in enumerate(("conv", "detail", "complex"))
    ]
    references = [{"question_id": n, "text": f"reference {n}"} for n in range(3)]
    contexts = [{"image": f"{n}.jpg", "caption": f"Thing {n} on a table."} for n in range(3)]
    return Sources(
        questions=_lines(folder / "questions.jsonl", lines),
        annotations=_lines(folder / "answers_gpt4.jsonl", references),
        captions=_lines(folder / "context.jsonl", contexts),
    )


def mm_vet(folder: Path) -> Sources:
    """Two questions of different capabilities."""
    content = {
        f"v1_{n}": {"imagename": f"{n}.jpg", "question": f"What of {n}?", "answer": "red", "capability": needed}
        for n, needed in enumerate((["rec"], ["ocr", "math"]))
    }  # fmt: skip
    return Sources(questions=_json(folder / "mm-vet.json", content))


OFFICIAL: dict[str, Callable[[Path], Sources]] = {
    "scienceqa": science_qa,
    "pope": pope,
    "mme": mme,
    "mmbench": mmbench,
    "mmbench_cn": mmbench,
    "seed-bench": seed_bench,
    "mmmu": mmmu,
    "nlvr": nlvr,
    "vqav2": vqav2,
    "gqa": gqa,
    "textvqa": textvqa,
    "vizwiz": vizwiz,
    "captions": captions,
    "custom": custom,
    "llava-bench": llava_bench,
    "llava-bench-coco": llava_bench,
    "mm-vet": mm_vet,
}
"""Functions that write a benchmark's files to a folder, by its name."""
