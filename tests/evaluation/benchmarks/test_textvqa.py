"""TextVQA: accuracy from its official file and LLaVA's answers, worked by hand."""

import json
from pathlib import Path

import pytest

from caldera.errors import AnnotationError, InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.textvqa import TEXTVQA, extract_question

SHORT = "Answer the question using a single word or phrase."


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Three questions about two images, in the layout of 0.5.1."""
    rows: list[tuple[int, str, str, list[str]]] = [
        (34602, "003a", "what is the brand?", ["Nous les gosses"] * 5 + ["dakota"] * 5),
        (34603, "003a", "who made it?", ["Macy's"] * 2 + [f"x{n}" for n in range(8)]),
        (34604, "0054", "what is the brand?", ["nine"] * 10),
    ]
    names = ("question_id", "image_id", "question", "answers")
    data = [dict(zip(names, row, strict=True)) for row in rows]
    path = tmp_path / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"dataset_type": "val", "data": data}))
    return Sources(annotations=path)


def llava(folder: Path, *answers: tuple[str, str, str]) -> Path:
    """Write answers in LLaVA's layout: by image, with the prompt."""
    path = folder / "llava-v1.5-13b.jsonl"
    lines = [
        {"question_id": image, "prompt": f"{question}\nReference OCR token: A, B\n{SHORT}", "text": text}
        for image, question, text in answers
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_llavas_answers_worked_by_hand(sources: Sources, tmp_path: Path) -> None:
    """Matched by image and question: 5 of 10 agree, 2 of 10 give 0.6, "9" is "nine"."""
    answers = llava(
        tmp_path,
        ("0054", "What is the brand?", "9"),
        ("003a", "What is the brand?", "Dakota."),
        ("003a", "Who made it?", "macy's"),
    )
    score = TEXTVQA.score_answer_files(sources, answers)
    assert score.item_scores == pytest.approx({"34602": 1, "34603": 0.6, "34604": 1})
    assert score.metrics["accuracy"] == 86.67
    assert score.metrics["questions"] == 3


def test_answers_may_have_question_ids(sources: Sources, tmp_path: Path) -> None:
    """This is TextVQA's own layout."""
    path = tmp_path / "answers.json"
    texts = {34602: "x", 34603: "x1", 34604: "Nine"}
    path.write_text(json.dumps([{"question_id": n, "answer": t} for n, t in texts.items()]))
    assert TEXTVQA.score_answer_files(sources, path).metrics["accuracy"] == 43.33


def test_unmatched_and_repeated_answers_are_rejected(sources: Sources, tmp_path: Path) -> None:
    """The message lists them."""
    with pytest.raises(InputError, match="1 answers belong to no item: 003a"):
        TEXTVQA.score_answer_files(sources, llava(tmp_path, ("003a", "What colour?", "red")))
    twice = [("0054", "What is the brand?", "9")] * 2
    with pytest.raises(InputError, match="34604"):
        TEXTVQA.score_answer_files(sources, llava(tmp_path, *twice))


@pytest.mark.parametrize(
    "prompt",
    [
        f"Who Made it?\nReference OCR token: A, B\n{SHORT}",
        f"Reference OCR token: A, B\nWho made it?\n{SHORT}",
        f"Who made it?\n{SHORT}",
        "OCR tokens: A, B. Question: Who made it? Short answer:",
        "who made it?",
    ],
)
def test_the_question_is_extracted_from_every_prompt(prompt: str) -> None:
    """The prompts are those that LLaVA's script parses."""
    assert extract_question(prompt) == "who made it?"


def test_llavas_file_gives_the_prompts(sources: Sources, tmp_path: Path) -> None:
    """With it, the prompt has OCR words; without it, it has none."""
    path = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    questions = {
        "003a": ["What is the brand?", "Who made it?"],
        "0054": ["What is the brand?"],
    }
    lines = [
        {"question_id": image, "image": f"{image}.jpg", "text": f"{text}\nReference OCR token: A\n{SHORT}"}
        for image, texts in questions.items()
        for text in texts
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    item = TEXTVQA.load(Sources(annotations=sources.annotations, questions=path)).items[1]
    assert item.conversation.turns[0].text == f"\nWho made it?\nReference OCR token: A\n{SHORT}"
    plain = TEXTVQA.load(sources).items[1]
    assert plain.conversation.turns[0].text == f"\nWho made it?\n{SHORT}"
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(InputError, match=r"lacks 'who made it\?' of 003a.jpg"):
        TEXTVQA.load(Sources(annotations=sources.annotations, questions=path))


def test_ten_answers_are_required(sources: Sources) -> None:
    """The official evaluator rejects another number, too."""
    assert sources.annotations is not None
    content = json.loads(sources.annotations.read_text())
    content["data"][1]["answers"].pop()
    sources.annotations.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"data\.1: answers: list should have at least 10"):
        TEXTVQA.load(sources)
