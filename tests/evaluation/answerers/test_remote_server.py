"""Answers of a server, over loopback: images as data URLs, retries, and failures that are not answers."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from caldera.errors import LLMClientError, UsageError
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig
from caldera.evaluation.answerers.remote_server import ServerAddress, ServerAnswerer
from tests import teacher_server
from tests.evaluation.questions import number_in, questions, right
from tests.teacher_server import Script, TeacherServer, completion

Serve = Callable[[Script], TeacherServer]


def ask(server: TeacherServer, photos: Path, count: int = 6, **settings: Any) -> dict[str, Answer]:  # noqa: ANN401
    """Return a server's answers to all questions but q4, by item id."""
    answers: dict[str, Answer] = {}
    answerer = ServerAnswerer(
        ServerAddress(url=server.url, model="m", key=SecretStr("secret-key")),
        AnswerConfig(**settings),
    )
    answerer.ask(
        [answerer.prepare(item, photos, ("0" * 64,)) for item in questions(count).items],
        {"q4"},
        lambda batch: answers.update({answer.id: answer for answer in batch}),
        max_new_tokens=9,
    )
    return answers


def test_images_and_text_arrive_unchanged(serve: Serve, photos: Path) -> None:
    """The file's bytes as a data URL before the text, text alone as a string; answered items are not asked."""
    server = serve(right)
    answers = ask(server, photos)
    texts = {item_id: answer.text for item_id, answer in answers.items()}
    assert texts == {"q0": "red", "q1": "blue", "q2": "green", "q3": "red", "q5": "nothing"}
    bodies = {number_in(body): body for body in server.bodies()}
    image, text = bodies[1]["messages"][0]["content"]
    media_type, _, data = image["image_url"]["url"].partition(",")
    assert media_type == "data:image/png;base64"
    assert base64.b64decode(data) == (photos / "1.png").read_bytes()
    assert text == {"type": "text", "text": "what is there in image 1 and where?"}
    content = bodies[2]["messages"][0]["content"]
    assert content.strip() == "what is there in image 2 and where and where?"
    assert (bodies[1]["temperature"], bodies[1]["max_tokens"], bodies[1]["model"]) == (0.0, 9, "m")
    assert "seed" not in bodies[1]


def test_an_image_of_another_format_is_sent_as_png(serve: Serve, photos: Path) -> None:
    """Servers take no bitmap, here in a file with the suffix of another format."""
    expected = Image.open(photos / "1.png").convert("RGB")
    expected.save(photos / "1.png", "BMP")
    server = serve(right)
    ask(server, photos)
    bodies = {number_in(body): body for body in server.bodies()}
    media_type, _, data = bodies[1]["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    assert media_type == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == expected.tobytes()


def test_transient_errors_are_retried_and_others_fail(serve: Serve, photos: Path) -> None:
    """A 500 is retried; a 400 and a missing image fail with a reason, never as an empty answer."""
    numbers: list[int] = []

    def script(request: dict[str, Any], count: int) -> teacher_server.Answer:
        number = number_in(request)
        numbers.append(number)
        if number == 0 and numbers.count(0) == 1:
            return teacher_server.Answer({"error": {}}, status=500, headers={"retry-after-ms": "1"})
        if number == 1:
            return teacher_server.Answer({"error": {"message": "too large"}}, status=400)
        return right(request, count)

    (photos / "3.png").unlink()
    answers = ask(serve(script), photos, concurrency=1)
    assert answers["q0"].text == "red"
    failed = {item_id: answer.error for item_id, answer in answers.items() if answer.error}
    assert failed.keys() == {"q1", "q3"}
    assert "bad request: HTTP 400" in failed["q1"]
    assert "3.png does not exist" in failed["q3"]


def test_a_failing_server_ends_the_run(serve: Serve, photos: Path) -> None:
    """After the allowed number of consecutive failures; a rejected key ends it at once, and is not printed."""
    failing = serve(lambda request, count: teacher_server.Answer({"error": {}}, status=400))
    with pytest.raises(LLMClientError, match="3 consecutive items failed"):
        ask(failing, photos, 30, concurrency=1, max_consecutive_failures=3)
    assert failing.count == 3
    locked = serve(
        lambda request, count: teacher_server.Answer({"error": {"message": "bad secret-key"}}, 401)
    )
    with pytest.raises(LLMClientError, match="the server does not accept the API key") as raised:
        ask(locked, photos, concurrency=1)
    assert "secret-key" not in str(raised.value)


def test_the_only_model_of_a_server_is_the_default(serve: Serve) -> None:
    """Several are listed in the message; a reply without a list is an error."""
    single = serve(lambda request, count: teacher_server.Answer({"data": [{"id": "llava"}]}))
    answerer = ServerAnswerer(ServerAddress(url=single.url), AnswerConfig())
    assert answerer.identity["model"] == f"llava at {single.url}"
    two = serve(lambda request, count: teacher_server.Answer({"data": [{"id": "a"}, {"id": "b"}]}))
    with pytest.raises(
        UsageError, match=r"serves 2 models \(a, b\); choose one with --served-model"
    ):
        ServerAnswerer(ServerAddress(url=two.url), AnswerConfig())
    other = serve(lambda request, count: completion("hello"))
    with pytest.raises(LLMClientError, match="does not list its models"):
        ServerAnswerer(ServerAddress(url=other.url), AnswerConfig())


def test_a_server_cannot_score_options() -> None:
    """The setting is rejected before anything is sent."""
    with pytest.raises(UsageError, match="choice_method=letter needs a model folder"):
        ServerAnswerer(
            ServerAddress(url="http://127.0.0.1:9/v1", model="m"),
            AnswerConfig(choice_method="letter"),
        )


def test_a_lone_surrogate_in_an_answer_is_replaced(serve: Serve, photos: Path) -> None:
    """So that the answer can be written as UTF-8."""
    answers = ask(serve(lambda request, count: completion("a\ud800b")), photos, 1)
    assert answers["q0"].text == "a?b"
