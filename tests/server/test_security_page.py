"""docs/security.md compared with the tests that it names."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "security.md"
NOT_FAULTS = {
    "server/media/test_fetcher.py::test_an_allowed_host_is_fetched_from",
    "server/page/test_accessibility.py::test_a_placeholder_looks_unlike_text",
    "server/page/test_accessibility.py::test_no_view_has_a_serious_fault",
    "server/page/test_accessibility.py::test_the_page_can_be_used_by_keyboard",
    "server/page/test_page.py::test_answers_grow_and_can_be_stopped",
    "server/page/test_page.py::test_a_question_can_be_retried_and_edited",
    "server/page/test_page.py::test_a_reload_loses_nothing",
    "server/page/test_page.py::test_attention_maps_are_drawn",
    "server/page/test_page.py::test_conversations_stored_by_earlier_versions_open",
    "server/page/test_page.py::test_earlier_conversations_are_listed",
    "server/page/test_page.py::test_metadata_are_of_the_model",
    "server/page/test_page.py::test_questions_about_images_are_answered",
    "server/page/test_page.py::test_the_download_is_a_data_file",
    "server/page/test_page.py::test_the_page_can_be_chinese",
    "server/page/test_page.py::test_two_models_answer_side_by_side",
    "server/page/test_schemas.py::test_a_conversation_without_answers_cannot_be_downloaded",
    "server/page/test_schemas.py::test_a_placeholder_in_text_cannot_be_downloaded",
    "server/page/test_schemas.py::test_an_empty_question_is_rejected",
    "server/page/test_schemas.py::test_an_unanswered_question_is_omitted_but_not_its_images",
    "server/page/test_schemas.py::test_each_model_has_its_own_answers",
    "server/page/test_schemas.py::test_the_download_holds_a_record_for_each_model",
}
"""Tests of what the server offers, which need no row."""


def find_tests(folder: Path) -> set[str]:
    """Return the ids of all tests below a folder."""
    return {
        f"{path.relative_to(TESTS)}::{name}"
        for path in folder.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def test_the_page_names_the_tests_of_every_fault() -> None:
    """Each row names tests that exist, and each test of the server is in a row or is not about a fault."""
    rows = re.findall(r"^\| (?!fault|---)(.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) >= 57
    tests_of_rows = [set(re.findall(r"`(\S+\.py::\w+)`", row)) for row in rows]
    assert all(tests_of_rows)
    documented = set[str]().union(*tests_of_rows)
    assert documented <= find_tests(TESTS)
    own = {name for name in find_tests(TESTS / "server") if "test_security_page" not in name}
    assert own - documented == NOT_FAULTS
