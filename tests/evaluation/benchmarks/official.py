"""Tiny files in every benchmark's official layout: two or more questions each, about images that a test paints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.mme import SIZES

Lines = list[dict[str, Any]]


def _json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def _lines(path: Path, lines: Lines) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def science_qa(folder: Path) -> Sources:
    """Three problems of the test split, one with an image."""
    problems = {
        str(at): {
            "question": f"Which of {at}?", "choices": ["red", "green"], "answer": at % 2, "hint": "",
            "image": "image.png" if at == 1 else None, "subject": "natural science", "grade": "grade3",
            "split": "test",
        }
        for at in range(1, 4)
    }  # fmt: skip
    _json(folder / "pid_splits.json", {"test": list(problems)})
    return Sources(questions=_json(folder / "problems.json", problems))


def pope(folder: Path) -> Sources:
    """Two questions about each of two images."""
    lines = [
        {"question_id": at, "image": f"{at // 2}.jpg", "text": f"Is there a {at}?", "label": ("yes", "no")[at % 2]}
        for at in range(4)
    ]  # fmt: skip
    return Sources(annotations=_lines(folder / "coco_pope_random.json", lines))


def mme(folder: Path) -> Sources:
    """All fourteen sub-tasks with two images; their questions stand apart, as the images' second ones come last."""
    texts = folder / "texts"
    texts.mkdir()
    for subtask in SIZES:
        rows = [f"{at % 2}.png\tIs it {at}?\t{('Yes', 'No')[at // 2]}" for at in range(4)]
        (texts / f"{subtask}.txt").write_text("\n".join(rows))
    return Sources(annotations=texts)


def mmbench(folder: Path) -> Sources:
    """Three questions of two choices; their second rows come last."""
    rows = ["index\tquestion\thint\tA\tB\tanswer\tcategory\tl2-category"]
    for turned in range(2):
        choices = ("green\tred", "red\tgreen")[turned]
        rows += [
            f"{1_000_000 * turned + at}\tWhich of {at}?\tnan\t{choices}\t{'AB'[turned]}\tcolor\tseeing"
            for at in range(7, 10)
        ]
    (folder / "dev.tsv").write_text("\n".join(rows))
    return Sources(questions=folder / "dev.tsv")


def seed_bench(folder: Path) -> Sources:
    """A question about an image and one about a video."""
    questions = [
        {
            "question_id": name, "question": f"What of {name}?", "choice_a": "a", "choice_b": "b", "choice_c": "c",
            "choice_d": "d", "answer": letter, "question_type_id": at, "data_type": shown, "data_id": f"{name}.jpg",
        }
        for at, (name, letter, shown) in enumerate((("1", "A", "image"), ("v0", "D", "video")))
    ]  # fmt: skip
    kinds = {"Scene": 0, "Action": 1}
    return Sources(
        questions=_json(
            folder / "SEED-Bench.json", {"questions": questions, "question_type": kinds}
        )
    )


def mmmu(folder: Path) -> Sources:
    """An open question first, then two of choice."""
    questions = [
        {"id": f"validation_Math_{at}", "question": f"What is {at} in <image 1>?", "options": options,
         "answer": answer, "question_type": kind}
        for at, (options, answer, kind) in enumerate(
            (([], "7", "open"), ("['a', 'b']", "A", "multiple-choice"), ("['a', 'b']", "B", "multiple-choice"))
        )
    ]  # fmt: skip
    return Sources(questions=_json(folder / "val.json", questions))


def nlvr(folder: Path) -> Sources:
    """Two sentences with two drawings each, in turn."""
    lines = [
        {"image": f"dev-{at % 2}-{at}-0.png", "sentence": f"There is {at % 2}", "label": ("true", "false")[at // 2]}
        for at in range(4)
    ]  # fmt: skip
    return Sources(questions=_lines(folder / "dev.jsonl", lines))


def vqav2(folder: Path) -> Sources:
    """Three questions about two images."""
    asked = [{"question_id": at, "image_id": 4 + at % 2, "question": f"What is {at}?"} for at in range(3)]  # fmt: skip
    said: Lines = [
        {
            "question_id": at, "image_id": 4 + at % 2, "answer_type": "other", "question_type": "what is",
            "multiple_choice_answer": "dog",
            "answers": [{"answer": "dog", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
        }
        for at in range(3)
    ]  # fmt: skip
    questions = _json(folder / "q.json", {"data_subtype": "val2014", "questions": asked})
    return Sources(questions=questions, annotations=_json(folder / "a.json", {"annotations": said}))


def gqa(folder: Path) -> Sources:
    """Three questions about one image."""
    types = {"structural": "query", "semantic": "attr", "detailed": "x"}
    questions = {
        str(at): {"imageId": "n1", "question": f"What of {at}?", "answer": "red", "isBalanced": True, "types": types}
        for at in range(3)
    }  # fmt: skip
    return Sources(questions=_json(folder / "testdev_balanced_questions.json", questions))


def textvqa(folder: Path) -> Sources:
    """Two questions about one image."""
    data = [
        {"question_id": at, "image_id": "003a", "question": f"brand {at}?", "answers": ["dakota"] * 10}
        for at in range(2)
    ]  # fmt: skip
    content = {"dataset_type": "val", "data": data}
    return Sources(annotations=_json(folder / "TextVQA_0.5.1_val.json", content))


def vizwiz(folder: Path) -> Sources:
    """A question about each of two images."""
    records = [
        {"image": f"VizWiz_val_0000000{at}.jpg", "question": f"What is {at}?", "answer_type": "other", "answerable": 1,
         "answers": [{"answer": "soup", "answer_confidence": "yes"}] * 10}
        for at in range(2)
    ]  # fmt: skip
    return Sources(annotations=_json(folder / "val.json", records))


def captions(folder: Path) -> Sources:
    """Two images with a caption each."""
    content = {
        "images": [{"id": at, "file_name": f"{at}.jpg"} for at in range(2)],
        "annotations": [
            {"id": at, "image_id": at, "caption": ("a red dog sleeps here", "two cats eat a fish")[at]}
            for at in range(2)
        ],
    }  # fmt: skip
    return Sources(annotations=_json(folder / "captions_val2014.json", content))


def custom(folder: Path) -> Sources:
    """A question of each kind that needs no judge."""
    lines: Lines = [
        {"question": "Which colour?", "answer": "red", "image": "0.jpg"},
        {"question": "What does it say?", "answer": "Exit", "match": "contains", "image": "1.jpg"},
        {"question": "Which?", "answer": "dog", "choices": ["cat", "dog"]},
    ]
    return Sources(questions=_lines(folder / "own.jsonl", lines))


def llava_bench(folder: Path) -> Sources:
    """A question of each category, with references and contexts."""
    lines: Lines = [
        {"question_id": at, "image": f"{at}.jpg", "text": f"What of {at}?", "category": category}
        for at, category in enumerate(("conv", "detail", "complex"))
    ]
    truth = [{"question_id": at, "text": f"reference {at}"} for at in range(3)]
    contexts = [{"image": f"{at}.jpg", "caption": f"Thing {at} on a table."} for at in range(3)]
    return Sources(
        questions=_lines(folder / "questions.jsonl", lines),
        annotations=_lines(folder / "answers_gpt4.jsonl", truth),
        captions=_lines(folder / "context.jsonl", contexts),
    )


def mm_vet(folder: Path) -> Sources:
    """Two questions of different capabilities."""
    content = {
        f"v1_{at}": {"imagename": f"{at}.jpg", "question": f"What of {at}?", "answer": "red", "capability": needed}
        for at, needed in enumerate((["rec"], ["ocr", "math"]))
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
"""What writes a task's files into a folder, by the task's name."""
