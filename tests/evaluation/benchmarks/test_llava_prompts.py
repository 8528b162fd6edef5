"""Prompts and answer lengths of LLaVA's own evaluation: each of its question files is compared in full."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from caldera.conversation import ImageRef
from caldera.evaluation.benchmark import Item, Sources
from caldera.evaluation.benchmarks.registry import BENCHMARKS
from caldera.instructions.request_phrases import LETTER_PROMPT, SHORT_ANSWER
from tests.evaluation.benchmarks.official import OFFICIAL

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."

Write = Callable[[Path, list[dict[str, Any]]], Path]
Prompts = list[tuple[str, str]]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def llava_prompts(lines: Iterable[dict[str, Any]]) -> Prompts:
    """Return image name and prompt of each question, as LLaVA's scripts ask it."""
    return sorted((Path(line["image"]).stem, f"\n{line['text']}") for line in lines)


def prompts(items: Iterable[Item]) -> Prompts:
    """Return image name and prompt of each item; the image comes first."""
    image_prompts = []
    for item in items:
        image, text = item.conversation.turns[0].parts
        assert isinstance(image, ImageRef)
        assert isinstance(text, str)
        image_prompts.append((Path(image.path).stem, text))
    return sorted(image_prompts)


def load(name: str, *, annotations: Path | None = None, questions: Path | None = None) -> Prompts:
    """Return the prompts of a benchmark."""
    sources = Sources(annotations=annotations, questions=questions)
    return prompts(BENCHMARKS[name].load(sources).items)


def test_popes_questions_are_llavas(third_party: Path) -> None:
    """2,910 of 2,910 of the random split, from POPE's file alone."""
    folder = third_party / "pope"
    lines = read_lines(folder / "llava_pope_random_questions.jsonl")
    assert len(lines) == 2910
    assert load("pope", annotations=folder / "coco_pope_random.json") == llava_prompts(lines)


def test_popes_corrected_file_is_matched_with_llavas(third_party: Path, tmp_path: Path) -> None:
    """POPE has since corrected "imange", in 144 questions; LLaVA's are asked, and its answers give the published F1."""
    folder = third_party / "pope"
    text = (folder / "coco_pope_random.json").read_text()
    assert text.count("imange") == 144
    corrected = tmp_path / "coco_pope_random.json"
    corrected.write_text(text.replace("imange", "image"))
    questions = folder / "llava_pope_random_questions.jsonl"
    assert load("pope", annotations=corrected, questions=questions) == llava_prompts(
        read_lines(questions)
    )
    answers = folder / "llava-v1.5-13b_random_answers.jsonl"
    for sources in (
        Sources(annotations=corrected, questions=questions),
        Sources(annotations=corrected),
    ):
        metrics = BENCHMARKS["pope"].score_answer_files(sources, answers).metrics
        assert round(metrics["f1"], 2) == 87.14


def test_mmes_instruction_is_replaced(third_party: Path) -> None:
    """2,374 of 2,374 questions of MME's release, which end with one instruction, are asked with another."""
    folder = third_party / "mme" / "LaVIN"
    rows = [
        line.split("\t") for path in folder.glob("*.txt") for line in path.read_text().splitlines()
    ]
    assert len(rows) == 2374
    assert load("mme", annotations=folder) == sorted(
        (Path(row[0]).stem, f"\n{row[1].removesuffix('Please answer yes or no.').rstrip()}\n{SHORT_ANSWER}")
        for row in rows
    )  # fmt: skip


def test_science_qas_file_is_asked_as_by_llavas_script(third_party: Path) -> None:
    """4,241 of 4,241: the marks of images removed, the ends stripped, the request for a letter appended."""
    path = third_party / "scienceqa" / "llava_test_CQM-A.json"
    records = json.loads(path.read_text())
    benchmark = BENCHMARKS["scienceqa"].load(Sources(questions=path))
    assert len(records) == len(benchmark.items) == 4241
    for record, item in zip(records, benchmark.items, strict=True):
        text = record["conversations"][0]["value"].replace("<image>", "").strip()
        images = (record["image"],) if "image" in record else ()
        assert item.conversation.images == images
        prompt = f"{text}\n{LETTER_PROMPT}"
        assert item.conversation.turns[0].text == (f"\n{prompt}" if images else prompt)


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("llava-bench", "llava_bench_wild/questions.jsonl", 60),
        ("llava-bench-coco", "llava_bench_coco/qa90_questions.jsonl", 90),
    ],
)
def test_llava_benchs_questions_are_asked_as_they_are(
    third_party: Path, name: str, file: str, count: int
) -> None:
    """All of both files."""
    lines = read_lines(third_party / file)
    assert len(lines) == count
    assert load(name, questions=third_party / file) == llava_prompts(lines)


def test_mme_equals_llavas_file(llava_eval: Path, third_party: Path) -> None:
    """2,374 of 2,374, from MME's files alone and with LLaVA's."""
    path, official = llava_eval / "MME" / "llava_mme.jsonl", third_party / "mme" / "LaVIN"
    expected = llava_prompts(read_lines(path))
    assert len(expected) == 2374
    assert load("mme", annotations=official) == expected
    assert load("mme", annotations=official, questions=path) == expected


def test_mm_vet_equals_llavas_file(llava_eval: Path, third_party: Path) -> None:
    """218 of 218, from the official file alone and with LLaVA's."""
    path, official = llava_eval / "mm-vet" / "llava-mm-vet.jsonl", third_party / "mm_vet"
    expected = llava_prompts(read_lines(path))
    assert len(expected) == 218
    assert load("mm-vet", questions=official / "mm-vet.json") == expected
    assert load("mm-vet", annotations=official / "mm-vet.json", questions=path) == expected


def test_pope_equals_llavas_file(llava_eval: Path, tmp_path: Path) -> None:
    """8,910 of 8,910, with labels of POPE's corrected files."""
    path = llava_eval / "pope" / "llava_pope_test.jsonl"
    lines = read_lines(path)
    for split in ("random", "popular", "adversarial"):
        questions = [line for line in lines if line["category"] == split]
        labels = (
            line | {"text": line["text"].split("\n")[0].replace("imange", "image"), "label": "yes"}
            for line in questions
        )
        (tmp_path / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, labels)))
    expected = llava_prompts(lines)
    assert len(expected) == 8910
    assert load("pope", annotations=tmp_path, questions=path) == expected


def vizwiz(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write VizWiz's layout in lower case, with the spaces around each question."""
    tail = f"\n{UNANSWERABLE}\n{SHORT_ANSWER}"
    records = [
        {"image": line["image"], "question": line["text"].removesuffix(tail).lower()}
        for line in lines
    ]
    path.write_text(json.dumps(records))
    return path


def textvqa(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write TextVQA's layout in lower case."""
    records = [
        {"question_id": number, "image_id": line["question_id"], "question": line["text"].split("\n")[0].lower()}
        for number, line in enumerate(lines)
    ]  # fmt: skip
    path.write_text(json.dumps({"data": records}))
    return path


def gqa(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write GQA's layout."""
    questions = {
        line["question_id"]: {
            "imageId": Path(line["image"]).stem,
            "question": line["text"].removesuffix(f"\n{SHORT_ANSWER}"),
        }
        for line in lines
    }
    path.write_text(json.dumps(questions))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "write", "count"),
    [
        ("vizwiz", "vizwiz/llava_test.jsonl", vizwiz, 8000),
        ("textvqa", "textvqa/llava_textvqa_val_v051_ocr.jsonl", textvqa, 5000),
        ("gqa", "gqa/llava_gqa_testdev_balanced.jsonl", gqa, 12578),
    ],
)
def test_open_questions_equal_llavas_file(
    llava_eval: Path, tmp_path: Path, name: str, file: str, write: Write, count: int
) -> None:
    """Every prompt, from a file in the official layout and with LLaVA's; its OCR words are only in LLaVA's."""
    lines = read_lines(llava_eval / file)
    official = write(tmp_path / "official.json", lines)
    assert len(lines) == count
    assert load(name, annotations=official, questions=llava_eval / file) == llava_prompts(lines)
    without_ocr = [
        line | {"text": "\n".join(part for part in line["text"].split("\n") if not part.startswith("Reference OCR"))}
        for line in lines
    ]  # fmt: skip
    assert load(name, annotations=official) == llava_prompts(without_ocr)


def test_answers_are_as_long_as_in_llavas_scripts(tmp_path: Path) -> None:
    """128 tokens in model_vqa_loader.py, 1,024 in its three other scripts; other benchmarks have no script."""
    lengths = {}
    for name, write in OFFICIAL.items():
        (tmp_path / name).mkdir()
        lengths[name] = BENCHMARKS[name].load(write(tmp_path / name)).max_new_tokens
    long = ("scienceqa", "mmbench", "mmbench_cn", "llava-bench", "llava-bench-coco", "mm-vet")
    assert lengths == dict.fromkeys(OFFICIAL, 128) | dict.fromkeys(long, 1024)
