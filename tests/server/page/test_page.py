"""The page in a real browser against a real server: what people do there, and rows I6 and I8 of the faults."""

import io
import json
import zipfile
from pathlib import Path

import pytest

from caldera.conversation import read_conversations
from tests.server.page.conftest import Visitor
from tests.server.server_process import ServerProcess, image

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """An image file."""
    path = tmp_path / "scene.png"
    path.write_bytes(image(1, (40, 30)))
    return path


def test_a_image_is_shown_and_asked_about(
    visitor: Visitor, web_server: ServerProcess, scene: Path
) -> None:
    """The answer comes; a second question with a second image goes on from there."""
    visitor.open(web_server)
    visitor.show(scene)
    visitor.ask("what is it")
    assert visitor.answer()
    visitor.show(scene, scene)
    visitor.ask("and these two")
    assert visitor.answer(2)
    assert visitor.page.locator("article").nth(1).locator("figcaption").all_inner_texts() == [
        "Picture A",
        "Picture B",
    ]


def test_answers_grow_and_can_be_stopped(visitor: Visitor, slow_server: ServerProcess) -> None:
    """Words are there before the end; after Stop they stay, and the engine is free."""
    visitor.open(slow_server)
    visitor.ask("what do you see")
    growing = visitor.page.locator(".answer.writing .text")
    growing.wait_for()
    first = growing.inner_text()
    visitor.page.wait_for_function(
        "n => document.querySelector('.answer .text').innerText.length > n", arg=len(first)
    )
    visitor.page.click("button.halt")
    visitor.page.wait_for_selector(".answer.cancelled")
    assert visitor.answer().startswith(first.rstrip("▍")[:3])
    slow_server.wait_until(lambda: slow_server.metric("caldera_running") == 0)


def test_a_closed_tab_frees_the_engine(visitor: Visitor, slow_server: ServerProcess) -> None:
    """Nothing is computed for a page that nobody looks at any more."""
    visitor.open(slow_server)
    visitor.ask("what do you see")
    visitor.page.wait_for_selector(".answer.writing")
    assert slow_server.metric("caldera_running") == 1
    visitor.page.close()
    slow_server.wait_until(lambda: slow_server.metric("caldera_running") == 0)


def test_a_question_is_tried_again_and_edited(visitor: Visitor, web_server: ServerProcess) -> None:
    """Both replace the last question; there are never two of it."""
    visitor.open(web_server)
    visitor.ask("what is it")
    visitor.answer()
    visitor.page.click("button.retry")
    visitor.answer()
    visitor.page.click("button.edit")
    assert visitor.page.input_value(".talk textarea") == "what is it"
    visitor.ask("where is it")
    visitor.answer()
    assert visitor.page.locator(".question .text").all_inner_texts() == ["where is it"]


def test_a_reload_loses_nothing(visitor: Visitor, web_server: ServerProcess, scene: Path) -> None:
    """Questions, images, answers and what is typed are there again, and the talk goes on."""
    visitor.open(web_server)
    visitor.show(scene)
    visitor.ask("what is it")
    answer = visitor.answer()
    visitor.page.fill(".talk textarea", "not sent yet")
    visitor.page.wait_for_timeout(600)
    visitor.page.reload()
    visitor.page.wait_for_selector("article img")
    assert visitor.answer() == answer
    assert visitor.page.input_value(".talk textarea") == "not sent yet"
    visitor.ask("and now")
    assert visitor.answer(2)


def test_a_dead_server_is_told_and_costs_nothing(
    visitor: Visitor, model_folder: Path, scene: Path
) -> None:
    """I8: Killed amid an answer: a banner, the conversation stays, and once it is back the question is asked again."""
    with ServerProcess(model_folder, "--web", faults=["slow:0.05"]) as server:
        visitor.open(server)
        visitor.show(scene)
        visitor.ask("what is it")
        visitor.page.wait_for_selector(".answer.writing")
        server.process.kill()
        visitor.page.wait_for_selector(".banner.down")
        assert "does not answer" in visitor.page.inner_text(".banner")
        assert visitor.page.inner_text(".question .text") == "what is it"
    with ServerProcess(model_folder, "--web", port=server.port):
        visitor.page.wait_for_selector(".banner.down", state="hidden")
        visitor.page.click("button.retry")
        assert visitor.answer()
        assert visitor.page.locator("article img").count() == 1


def test_a_refused_image_is_told(visitor: Visitor, web_server: ServerProcess, scene: Path) -> None:
    """I8: Too large, no image, or broken: each in words; what was typed stays."""
    visitor.open(web_server)
    visitor.page.fill(".talk textarea", "my question")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": scene.read_bytes()[:50]}
    large = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(11 << 20)}
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"}
    too_large = "large.png has 11 MB; images may have up to 10 MB"
    for file, told in ((broken, "broken or cut"), (large, too_large), (text, "is no image")):
        visitor.page.set_input_files(".composer input[type=file]", [file])
        visitor.page.wait_for_function(
            "said => document.querySelector('.banner').innerText.includes(said)", arg=told
        )
    assert visitor.page.input_value(".talk textarea") == "my question"


def test_a_conversation_that_is_too_long_is_told(
    visitor: Visitor, web_server: ServerProcess
) -> None:
    """The bubble says so, with the numbers; nothing is cut in silence."""
    visitor.open(web_server)
    visitor.ask("what do you see " * 600)
    visitor.page.wait_for_selector(".answer.error .fault")
    assert "tokens long" in visitor.page.inner_text(".fault")


def test_answers_are_shown_as_they_are_written(visitor: Visitor, model_folder: Path) -> None:
    """I6: HTML, javascript: links and remote images in an answer or a question do nothing."""
    evil = (
        "<img src=http://127.0.0.1:9/x onerror=hacked()><script>hacked()</script>[a](javascript:hacked()) "
        "![b](http://evil.test/steal.png) <a href=http://evil.test>c</a> **bold**"
    )
    with ServerProcess(model_folder, "--web", faults=[f"says:{evil}"]) as server:
        visitor.open(server)
        visitor.ask(evil)
        visitor.answer()
        shown = visitor.page.locator(".answer .text")
        assert shown.inner_text() == evil.replace("**bold**", "bold")
        assert visitor.page.inner_text(".question .text") == evil
        made = "[...document.querySelectorAll('.talk main *')].map(each => each.tagName)"
        assert set(visitor.page.evaluate(made)) <= {"ARTICLE", "DIV", "P", "STRONG", "BUTTON"}
        visitor.page.wait_for_timeout(300)
        assert not any("evil" in url or ":9/" in url for url in visitor.asked)


def test_the_download_is_a_data_file(
    visitor: Visitor, web_server: ServerProcess, scene: Path, tmp_path: Path
) -> None:
    """The ZIP holds what `read_conversations` takes, and the images it names, byte for byte."""
    visitor.open(web_server)
    visitor.show(scene)
    visitor.ask("what is it")
    answer = visitor.answer()
    with visitor.page.expect_download() as waiting:
        visitor.page.click("button.download")
    archive = zipfile.ZipFile(io.BytesIO(Path(waiting.value.path()).read_bytes()))
    archive.extractall(tmp_path / "taken")
    [read] = read_conversations(tmp_path / "taken" / "conversation.json")
    assert read.images == ("images/1.png",)
    assert (tmp_path / "taken" / "images" / "1.png").read_bytes() == scene.read_bytes()
    assert read.turns[0].text == "\nwhat is it"
    assert read.turns[1].text.replace("`", "") == answer.replace(
        "`", ""
    )  # shown as code between two


def test_what_an_answer_looked_at_is_drawn(
    visitor: Visitor, web_server: ServerProcess, scene: Path
) -> None:
    """A map over the image for the whole answer, another for a word, and the caption that says what it is not."""
    visitor.open(web_server)
    visitor.show(scene)
    visitor.ask("what is it")
    visitor.answer()
    visitor.page.click("button.looker")
    canvas = visitor.page.locator(".maps canvas")
    canvas.wait_for()
    painted = "() => document.querySelector('.maps canvas').width === 320"
    visitor.page.wait_for_function(painted)
    drawn = "document.querySelector('.maps canvas').toDataURL()"
    whole = visitor.page.evaluate(drawn)
    visitor.page.locator("button.word").first.click()
    visitor.page.wait_for_function(f"before => {drawn} !== before", arg=whole)
    assert "does not explain" in visitor.page.inner_text(".look .small")


def test_the_page_speaks_chinese(
    browser: object, web_server: ServerProcess, loopback: None
) -> None:
    """By the browser's language, down to Gradio's own parts; a switch changes it."""
    one = Visitor(browser, locale="zh-CN", viewport={"width": 390, "height": 780})
    one.open(web_server)
    assert one.page.inner_text(".talk h1") == "看图问答"
    one.page.get_by_text("设置").wait_for()
    wide = "document.documentElement.scrollWidth"
    assert one.page.evaluate(wide) <= 390
    one.page.click("button.language")
    one.page.get_by_text("Settings").wait_for()
    assert one.page.inner_text(".talk h1") == "Ask about images"
    one.context.close()
    assert one.outside() == []


def test_two_models_answer_side_by_side(
    visitor: Visitor, model_folder: Path, tmp_path: Path, scene: Path
) -> None:
    """Each under its name, each with its own record in the download."""
    with ServerProcess(model_folder, "--web", "--beside", str(model_folder)) as server:
        visitor.open(server)
        visitor.show(scene)
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
    """I8: More than there are slots: they wait their turn."""
    one = Visitor(browser)
    one.open(web_server)
    pages = [one.context.new_page() for _ in range(19)]
    for page in pages:
        page.goto(f"http://127.0.0.1:{web_server.port}/")
    for page in (one.page, *pages):
        page.fill(".talk textarea", "what is it")
        page.keyboard.press("Enter")
    for page in (one.page, *pages):
        page.wait_for_selector(".answer.stop, .answer.length", timeout=60_000)
    one.context.close()
