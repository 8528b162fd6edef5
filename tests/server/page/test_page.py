"""Tests of the page in a real browser against a real server."""

import io
import json
import re
import zipfile
from pathlib import Path

import pytest

from caldera.conversation import read_conversations
from tests.server.page.conftest import Visitor
from tests.server.server_process import ServerProcess, make_image

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """An image file."""
    path = tmp_path / "scene.png"
    path.write_bytes(make_image(1, (40, 30)))
    return path


def test_questions_about_images_are_answered(
    visitor: Visitor, web_server: ServerProcess, scene: Path
) -> None:
    """The conversation continues with more images, and a question before the first of them says that it has none.

    Headings for screen readers say who speaks.
    """
    visitor.open(web_server)
    visitor.ask("what is it")
    assert visitor.answer()
    visitor.add_images(scene)
    visitor.ask("what is it")
    assert visitor.answer(2)
    visitor.add_images(scene, scene)
    visitor.ask("and these two")
    assert visitor.answer(3)
    articles = visitor.page.locator("article").all()
    captions = [article.locator("figcaption").all_inner_texts() for article in articles]
    assert captions == [[], [], ["Picture A", "Picture B"]]
    notes = [article.locator(".no-image").all_inner_texts() for article in articles]
    assert notes == [["no image"], [], []]
    headings = visitor.page.locator("article h2").all_text_contents()
    assert headings == ["You asked", "tiny answered"] * 3


def test_answers_grow_and_can_be_stopped(visitor: Visitor, slow_server: ServerProcess) -> None:
    """Text appears before the end; after Stop it stays, and the engine is idle."""
    visitor.open(slow_server)
    visitor.ask("what do you see")
    growing = visitor.page.locator(".answer.writing .text")
    growing.wait_for()
    first = growing.inner_text()
    visitor.page.wait_for_function(
        "n => document.querySelector('.answer .text').innerText.length > n", arg=len(first)
    )
    visitor.page.click("button.stop")
    visitor.page.wait_for_selector(".answer.cancelled")
    assert visitor.answer().startswith(first.rstrip("▍")[:3])
    slow_server.wait_until(lambda: slow_server.metric("caldera_running") == 0)


def test_a_closed_tab_frees_the_engine(visitor: Visitor, slow_server: ServerProcess) -> None:
    """The engine does not generate for a closed page."""
    visitor.open(slow_server)
    visitor.ask("what do you see")
    visitor.page.wait_for_selector(".answer.writing")
    assert slow_server.metric("caldera_running") == 1
    visitor.page.close()
    slow_server.wait_until(lambda: slow_server.metric("caldera_running") == 0)


def test_a_question_can_be_retried_and_edited(
    visitor: Visitor, web_server: ServerProcess, scene: Path
) -> None:
    """Both replace the last question and do not repeat it; the draft of the next question stays.

    An edited question is replaced only when it is asked; Escape restores it, also after a reload.
    """
    visitor.open(web_server)
    visitor.add_images(scene)
    visitor.ask("what is it")
    visitor.answer()
    visitor.page.click("button.retry")
    visitor.answer()
    visitor.page.fill(".chat textarea", "my draft")
    visitor.page.click("button.edit")
    assert visitor.page.input_value(".chat textarea") == "what is it"
    visitor.page.fill(".chat textarea", "nonsense")
    visitor.page.click(".thumb button")
    visitor.page.wait_for_timeout(600)
    visitor.page.reload()
    visitor.page.wait_for_selector("article.edited")
    assert visitor.page.input_value(".chat textarea") == "nonsense"
    assert visitor.page.inner_text(".question .text") == "what is it"
    visitor.page.keyboard.press("Escape")
    assert visitor.page.input_value(".chat textarea") == "my draft"
    assert visitor.page.locator("article img").count() == 1
    visitor.page.click("button.edit")
    visitor.ask("where is it")
    visitor.answer()
    assert visitor.page.locator(".question .text").all_inner_texts() == ["where is it"]
    assert visitor.page.locator("article img").count() == 1
    assert visitor.page.input_value(".chat textarea") == "my draft"


def test_earlier_conversations_are_listed(
    visitor: Visitor, web_server: ServerProcess, scene: Path
) -> None:
    """They open, continue, and can be deleted; the list says where they are stored."""
    visitor.open(web_server)
    visitor.add_images(scene)
    visitor.ask("what is it")
    answer = visitor.answer()
    visitor.page.click("button.new")
    visitor.ask("what do you see")
    visitor.answer()
    visitor.page.reload()
    visitor.page.wait_for_selector("article")
    visitor.page.click("button.history")
    titles = visitor.page.locator("dialog .question-text")
    titles.first.wait_for()
    assert titles.all_inner_texts() == ["what do you see", "what is it"]
    assert "in this browser only" in visitor.page.inner_text("dialog p")
    titles.last.click()
    visitor.page.wait_for_selector("article img")
    assert visitor.answer() == answer
    visitor.ask("and now")
    visitor.answer(2)
    visitor.page.click("button.history")
    titles.first.wait_for()
    assert titles.all_inner_texts() == ["what is it", "what do you see"], "the last change is first"
    visitor.page.click("dialog li:last-child button:last-child")
    visitor.page.wait_for_function("document.querySelectorAll('dialog li').length === 1")
    visitor.page.on("dialog", lambda question: question.accept())
    visitor.page.click("dialog .delete-all")
    visitor.page.wait_for_function("document.querySelectorAll('dialog li').length === 0")
    visitor.page.keyboard.press("Escape")
    visitor.page.wait_for_selector(".welcome")


def test_two_tabs_with_one_conversation_lose_nothing(
    visitor: Visitor, web_server: ServerProcess
) -> None:
    """When one of them continues it, the other has a copy."""
    visitor.open(web_server)
    visitor.ask("first")
    visitor.answer()
    other = visitor.context.new_page()
    other.goto(visitor.page.url)
    other.click("button.history")
    other.click("dialog button.open")
    other.wait_for_selector("article")
    for page, question in ((visitor.page, "second"), (other, "third")):
        page.fill(".chat textarea", question)
        page.keyboard.press("Enter")
        page.wait_for_selector("article:nth-of-type(2) .answer.length")
        page.wait_for_timeout(600)
    for page, question in ((visitor.page, "second"), (other, "third")):
        page.reload()
        page.wait_for_selector("article")
        assert page.locator(".question .text").all_inner_texts() == ["first", question]


def test_metadata_are_of_the_model(visitor: Visitor, web_server: ServerProcess) -> None:
    """Title and description, which search engines and link previews show, have its name and not the framework's."""
    [head] = re.findall("<head>.*</head>", web_server.get("/").content.decode(), re.DOTALL)
    tags = re.findall(r"<(?:title|meta|link)\b[^>]*>[^<]*", head)
    assert "<title>tiny · Ask about images" in tags
    assert any('name="description" content="tiny' in tag for tag in tags)
    assert not any("gradio" in tag.lower() or "http" in tag for tag in tags)
    visitor.open(web_server)
    assert visitor.page.title() == "tiny · Ask about images"
    assert visitor.page.inner_text("header .name span") == "tiny"
    visitor.page.click("button.language")
    assert visitor.page.title() == "tiny · 看图问答"


def test_a_reload_loses_nothing(visitor: Visitor, web_server: ServerProcess, scene: Path) -> None:
    """Questions, images, answers and the draft are restored, and the conversation continues."""
    visitor.open(web_server)
    visitor.add_images(scene)
    visitor.ask("what is it")
    answer = visitor.answer()
    visitor.page.fill(".chat textarea", "not sent yet")
    visitor.page.wait_for_timeout(600)
    visitor.page.reload()
    visitor.page.wait_for_selector("article img")
    assert visitor.answer() == answer
    assert visitor.page.input_value(".chat textarea") == "not sent yet"
    visitor.ask("and now")
    assert visitor.answer(2)


def test_a_lost_server_is_reported_and_loses_nothing(
    visitor: Visitor, model_folder: Path, scene: Path
) -> None:
    """Killed during an answer: a banner, the conversation stays, and the question can be retried once it is back."""
    with ServerProcess(model_folder, "--web", faults=["slow:0.05"]) as server:
        visitor.open(server)
        visitor.add_images(scene)
        visitor.ask("what is it")
        visitor.page.wait_for_selector(".answer.writing")
        server.process.kill()
        visitor.page.wait_for_selector(".banner.down")
        assert "does not respond" in visitor.page.inner_text(".banner")
        assert visitor.page.inner_text(".question .text") == "what is it"
    with ServerProcess(model_folder, "--web", port=server.port):
        visitor.page.wait_for_selector(".banner.down", state="hidden")
        visitor.page.click("button.retry")
        assert visitor.answer()
        assert visitor.page.locator("article img").count() == 1


def test_a_rejected_image_is_reported(
    visitor: Visitor, web_server: ServerProcess, scene: Path
) -> None:
    """Too large, not an image, or broken: each has its message, and the draft stays."""
    visitor.open(web_server)
    visitor.page.fill(".chat textarea", "my question")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": scene.read_bytes()[:50]}
    large = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(11 << 20)}
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"}
    too_large = "large.png has 11 MB; the limit is 10 MB"
    for file, message in (
        (broken, "broken or truncated"),
        (large, too_large),
        (text, "is not an image"),
    ):
        visitor.page.set_input_files(".composer input[type=file]", [file])
        visitor.page.wait_for_function(
            "text => document.querySelector('.banner').innerText.includes(text)", arg=message
        )
    assert visitor.page.input_value(".chat textarea") == "my question"


def test_a_conversation_that_is_too_long_is_reported(
    visitor: Visitor, web_server: ServerProcess
) -> None:
    """The answer is an error with the numbers; nothing is truncated silently."""
    visitor.open(web_server)
    visitor.ask("what do you see " * 600)
    visitor.page.wait_for_selector(".answer.error .error-text")
    assert "tokens long" in visitor.page.inner_text(".error-text")


def test_html_and_links_in_texts_do_nothing(visitor: Visitor, model_folder: Path) -> None:
    """HTML, javascript: links and remote images in an answer or a question are shown as text."""
    evil = (
        "<img src=http://127.0.0.1:9/x onerror=hacked()><script>hacked()</script>[a](javascript:hacked()) "
        "![b](http://evil.test/steal.png) <a href=http://evil.test>c</a> **bold**"
    )
    with ServerProcess(model_folder, "--web", faults=[f"says:{evil}"]) as server:
        visitor.open(server)
        visitor.ask(evil)
        visitor.answer()
        assert visitor.page.locator(".answer .text").inner_text() == evil.replace(
            "**bold**", "bold"
        )
        assert visitor.page.inner_text(".question .text") == evil
        tags = "[...document.querySelectorAll('.conversation *')].map(node => node.tagName)"
        expected = {"ARTICLE", "DIV", "H2", "P", "STRONG", "BUTTON"}
        assert set(visitor.page.evaluate(tags)) == expected
        visitor.page.wait_for_timeout(300)
        assert not any("evil" in url or ":9/" in url for url in visitor.requests)


def test_the_download_is_a_data_file(
    visitor: Visitor, web_server: ServerProcess, scene: Path, tmp_path: Path
) -> None:
    """The ZIP contains a file for `read_conversations`, and the images it names, byte by byte."""
    visitor.open(web_server)
    visitor.add_images(scene)
    visitor.ask("what is it")
    answer = visitor.answer()
    with visitor.page.expect_download() as waiting:
        visitor.page.click("button.download")
    archive = zipfile.ZipFile(io.BytesIO(Path(waiting.value.path()).read_bytes()))
    archive.extractall(tmp_path / "extracted")
    [record] = read_conversations(tmp_path / "extracted" / "conversation.json")
    assert record.images == ("images/1.png",)
    assert (tmp_path / "extracted" / "images" / "1.png").read_bytes() == scene.read_bytes()
    assert record.turns[0].text == "\nwhat is it"
    # Text between backticks is rendered without them.
    assert record.turns[1].text.replace("`", "") == answer.replace("`", "")


def test_attention_maps_are_drawn(visitor: Visitor, web_server: ServerProcess, scene: Path) -> None:
    """One map for the complete answer, another for a word, and a note on what attention does not explain."""
    visitor.open(web_server)
    visitor.add_images(scene)
    visitor.ask("what is it")
    visitor.answer()
    visitor.page.click("button.toggle-attention")
    canvas = visitor.page.locator(".maps canvas")
    canvas.wait_for()
    painted = "() => document.querySelector('.maps canvas').width === 320"
    visitor.page.wait_for_function(painted)
    pixels = "document.querySelector('.maps canvas').toDataURL()"
    complete = visitor.page.evaluate(pixels)
    visitor.page.locator("button.word").first.click()
    visitor.page.wait_for_function(f"before => {pixels} !== before", arg=complete)
    assert "does not explain" in visitor.page.inner_text(".attention .small")


def test_the_page_can_be_chinese(
    browser: object, web_server: ServerProcess, loopback: None
) -> None:
    """The browser's language decides, also for Gradio's own parts; a button switches it."""
    visitor = Visitor(browser, locale="zh-CN", viewport={"width": 390, "height": 780})
    visitor.open(web_server)
    assert visitor.page.inner_text(".chat h1") == "看图问答"
    visitor.page.get_by_text("设置").wait_for()
    width = "document.documentElement.scrollWidth"
    assert visitor.page.evaluate(width) <= 390
    visitor.page.click("button.language")
    visitor.page.get_by_text("Settings").wait_for()
    assert visitor.page.inner_text(".chat h1") == "Ask about images"
    visitor.context.close()
    assert visitor.external_requests() == []


def test_two_models_answer_side_by_side(
    visitor: Visitor, model_folder: Path, tmp_path: Path, scene: Path
) -> None:
    """Each has its name, and its own record in the download."""
    with ServerProcess(model_folder, "--web", "--compare-with", str(model_folder)) as server:
        visitor.open(server)
        visitor.add_images(scene)
        visitor.ask("what is it")
        visitor.answer()
        names = visitor.page.locator(".answer .model").all_inner_texts()
        assert names == ["tiny", "model"]
        with visitor.page.expect_download() as waiting:
            visitor.page.click("button.download")
        archive = zipfile.ZipFile(waiting.value.path())
        records = json.loads(archive.read("conversation.json"))
        assert [record["id"] for record in records] == ["chat-a", "chat-b"]


def test_twenty_tabs_are_all_answered(
    browser: object, web_server: ServerProcess, loopback: None
) -> None:
    """There are more tabs than slots; the rest waits in the queue."""
    visitor = Visitor(browser)
    visitor.open(web_server)
    pages = [visitor.context.new_page() for _ in range(19)]
    for page in pages:
        page.goto(f"http://127.0.0.1:{web_server.port}/")
    for page in (visitor.page, *pages):
        page.fill(".chat textarea", "what is it")
        page.keyboard.press("Enter")
    for page in (visitor.page, *pages):
        page.wait_for_selector(".answer.stop, .answer.length", timeout=60_000)
    visitor.context.close()


def test_conversations_stored_by_earlier_versions_open(
    visitor: Visitor, web_server: ServerProcess
) -> None:
    """The names in the browser's database are those of the first version."""
    visitor.open(web_server)
    visitor.page.evaluate(
        """() => new Promise((resolve, reject) => {
            const request = indexedDB.open("caldera", 1);
            request.onsuccess = () => {
                const answer = { text: "a red square", state: "stop", error: null };
                const turn = { question: "what was it", images: [], answers: [answer] };
                const record = { tab: "old-tab", at: Date.now(), turns: [turn], draft: "and now", shown: [] };
                const store = request.result.transaction("talks", "readwrite").objectStore("talks");
                store.put(record).onsuccess = resolve;
            };
            request.onerror = reject;
        })"""
    )
    visitor.page.evaluate("sessionStorage.setItem('caldera.tab', 'old-tab')")
    visitor.page.reload()
    visitor.page.wait_for_selector("article")
    assert visitor.page.inner_text(".question .text") == "what was it"
    assert visitor.answer() == "a red square"
    assert visitor.page.input_value(".chat textarea") == "and now"
