"""The page of records is one file: escaped, sampled by seed, with problems marked, and without requests."""

import hashlib
import json
import re
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from caldera.conversation import Conversation, ImageRef, Turn, write_conversations
from caldera.conversation.reader import ReadOptions
from caldera.datasets.records_page import RecordsPageReport, write_records_page
from caldera.files.skipped_items import SkippedItems

EVIL = "<script>alert('x')</script> \" & <b>"


def record(name: str, *exchanges: str, images: tuple[str, ...] = ("0.png",)) -> Conversation:
    """Return a record about images; questions and answers alternate."""
    turns = [
        Turn(
            "assistant" if index % 2 else "user",
            (*(map(ImageRef, images) if not index else ()), text),
        )
        for index, text in enumerate(exchanges)
    ]
    return Conversation(name, tuple(turns))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with twenty images."""
    for number in range(20):
        Image.new("RGB", (700, 350), (number * 12, 90, 90)).save(tmp_path / f"{number}.png")
    return tmp_path


def write_page(
    folder: Path, *records: Conversation, limit: int = 100, seed: int = 0
) -> tuple[RecordsPageReport, str]:
    """Return the report and the text of a page about records."""
    write_conversations(folder / "data.json", records)
    page = folder / "page.html"
    report = write_records_page(
        folder / "data.json", page, SkippedItems(), ReadOptions(), limit=limit, seed=seed
    )
    return report, page.read_text()


def test_records_are_beside_their_image(folder: Path) -> None:
    """All records about an image share its card, whose image is a small JPEG in the page itself."""
    report, page = write_page(
        folder,
        record("a-detail", "What is it?", "A square."),
        record("b-vqa", "Which colour?", "red", images=("1.png",)),
        record("a-vqa", "Which shape?", "square"),
    )
    assert (report.records, report.total, report.images, report.problems) == (3, 3, 2, 0)
    cards = page.split("<article")[1:]
    assert [re.findall(r'data-kind="(\w+)"', card) for card in cards] == [
        ["detail", "vqa"],
        ["vqa"],
    ]
    urls = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert [Image.open(BytesIO(b64decode(url))).size for url in urls] == [(320, 160)] * 2


def test_texts_are_escaped_and_nothing_is_requested(folder: Path) -> None:
    """The policy allows one script, by its digest, and images of the page itself."""
    _, page = write_page(folder, record(f"{EVIL}/1-{EVIL}", EVIL, EVIL))
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'; img-src data:" in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert" in page
    assert all(url.startswith("data:") for url in re.findall(r'(?:src|href)="([^"]+)"', page))


def test_the_seed_chooses_images_in_any_order(folder: Path) -> None:
    """The same images for the same seed, whatever the order of the records."""
    records = [
        record(f"{number}-{kind}", "Q?", f"{kind} {number}", images=(f"{number}.png",))
        for number in range(20)
        for kind in ("vqa", "detail")
    ]

    def chosen(*items: Conversation, seed: int) -> set[str]:
        report, page = write_page(folder, *items, limit=5, seed=seed)
        assert (report.records, report.total, report.images) == (10, 40, 5)
        return {*re.findall(r'alt="([^"]+)"', page)}

    assert chosen(*records, seed=1) == chosen(*records[::-1], seed=1)
    assert chosen(*records, seed=1) != chosen(*records, seed=2)


def test_problems_are_marked(folder: Path) -> None:
    """A missing image, and questions and long answers that are repeated about one image."""
    answer = "It is a large red square."
    report, page = write_page(
        folder,
        record("1-vqa", "Which shape?", "square"),
        record("2-detail", "Which shape?", answer),
        record("3-detail", "What is it?", answer),
        record("4-vqa", "What?", "nothing", images=("missing.png",)),
    )
    problems = re.findall(r'<ul class="problems"><li>(.*?)</li></ul>', page)
    assert report.problems == len(problems) == 3
    assert "asked again: Which shape?" in problems[0]
    assert f"given again: {answer}" in problems[1]
    assert "missing.png" in problems[2]
    assert "no image" in page


def test_invalid_records_and_records_without_a_kind_are_shown(folder: Path) -> None:
    """Their kind differs from the filter's entry for all kinds; sentences are capitalized, one is singular."""
    write_conversations(
        folder / "data.json",
        [record(str(number), "Which shape?", "A square.") for number in range(30)],
    )
    content = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps([*content, {"id": "broken"}]))
    skipped = SkippedItems(1.0)
    report = write_records_page(folder / "data.json", folder / "a.html", skipped, ReadOptions())
    page = (folder / "a.html").read_text()
    assert report.skipped == 1
    assert " 1 record is invalid and not shown." in page
    assert "data.json[30]" in page.split("<h2>Invalid records</h2>")[1].split("</ul>")[0]
    assert {*re.findall(r'<span class="kind">(\w+)</span>', page)} == {"other"}
    assert '<option value="">all</option>\n<option>other</option>' in page
    advice = re.findall(r'<li>.*?\. <span class="soft">(.*?)</span>', page)
    assert len(advice) == 2
    assert all(text[0].isupper() and "`" not in text for text in advice)


def test_text_only_records_have_cards_of_their_own(folder: Path) -> None:
    """Records without images share nothing."""
    report, page = write_page(folder, *(record("same", "Q?", "A", images=()) for _ in range(3)))
    assert report.records == 3
    assert page.count("<article") == 3
