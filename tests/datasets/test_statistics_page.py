"""The statistics page is complete, escaped and drawn to scale."""

import math
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from caldera.conversation import Conversation, Turn
from caldera.datasets.statistics import Branch, DatasetStatistics, Histogram
from caldera.datasets.statistics_page import (
    bars,
    histogram,
    sunburst,
    write_statistics_page,
)

EVIL = "<script>alert('x')</script> \" & <b>"


def test_data_is_escaped_on_the_page(tmp_path: Path) -> None:
    """Markup in questions, answers, ids and titles is displayed as text; nothing is fetched."""
    statistics = DatasetStatistics()
    question = Turn("user", (f"{EVIL}?",))
    statistics.add(Conversation(f"{EVIL}/1", (question, Turn("assistant", ("<i>a</i>",)))))
    write_statistics_page(tmp_path / "page.html", statistics, EVIL)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert re.findall(r"(?:src|href)=", page) == []


def test_an_empty_set_has_a_page(tmp_path: Path) -> None:
    """No count is divided by zero."""
    write_statistics_page(tmp_path / "page.html", DatasetStatistics(), "none")
    assert "0 records" in (tmp_path / "page.html").read_text()


def rectangles(svg: str) -> list[tuple[float, float]]:
    """Return width and height of each rectangle."""
    elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
    return [
        (float(element.attrib["width"]), float(element.attrib["height"])) for element in elements
    ]


def test_column_heights_are_proportional_to_counts() -> None:
    """The highest column fills the plot; the last one holds the longest percent."""
    svg = histogram(Histogram(Counter({0: 10, 1: 40, 3: 20})), "words")
    heights = [height for _, height in rectangles(svg)]
    assert heights == pytest.approx([130 / 4, 130, 0, 130 / 2], abs=0.1)
    long = histogram(Histogram(Counter({1: 1000, 900: 1})), "words")
    assert len(rectangles(long)) == 2
    assert 20 < len(rectangles(histogram(Histogram(Counter(range(1000))), "words"))) <= 41


def test_bar_widths_are_proportional_to_counts() -> None:
    """Bars are in the given order."""
    widths = [width for width, _ in rectangles(bars({"dog": 30, "<cat>": 15, "cup": 3}))]
    assert widths == pytest.approx([250, 125, 25])
    assert bars({}) != ""


def test_arc_widths_are_proportional_to_shares() -> None:
    """A quarter of all questions is a quarter of the circle, in every ring."""
    tree = (Branch("is", 50, (Branch("it", 25),)), Branch("what", 25))
    svg = sunburst(tree, 100)
    paths = re.findall(r'd="M(\S+) (\S+)A(\d+) \d+ 0 (\d) 1 (\S+) (\S+)L', svg)
    widths = []
    for x, y, radius, wide, to_x, to_y in paths:
        assert math.hypot(float(x), float(y)) == pytest.approx(float(radius), abs=0.02)
        turn = math.atan2(float(to_y), float(to_x)) - math.atan2(float(y), float(x))
        widths.append(turn % (2 * math.pi) / (2 * math.pi))
        assert wide == "0"
    assert widths == pytest.approx([0.5, 0.25, 0.25], abs=0.001)
    assert "<title>is: 50</title>" in svg
    assert sunburst((Branch("only", 3),), 3).count("<path") == 1
    assert sunburst((), 0).count("<path") == 0
