"""A server as what answers, over loopback: images as data URLs, patience, failures that are no scores."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from caldera.errors import LLMClientError, UsageError
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig
from caldera.evaluation.answerers.remote_server import ServerAddress, ServerAnswerer
from tests import teacher_server
from tests.evaluation.questions import number_in, questions, right
from tests.teacher_server import Script, TeacherServer, completion

Serve = Callable[[Script], TeacherServer]


def ask(server: TeacherServer, photos: Path, count: int = 6, **asking: Any) -> dict[str, Answer]:  # noqa: ANN401
    """Ask a server some questions, without long waits."""
    answers: dict[str, Answer] = {}
    answerer = ServerAnswerer(
        ServerAddress(url=server.url, model="m", key=SecretStr("secret-key")),
        AnswerConfig(**asking),
    )
    answerer.ask(
        questions(count).items,
        {"q4"},
        lambda some: answers.update({one.id: one for one in some}),
        folder=photos,
        max_new_tokens=9,
    )
    return answers


def test_images_and_words_arrive_as_they_are(serve: Serve, photos: Path) -> None:
    """The file's own bytes as a data URL before the words, text alone as a string; what is done is not asked."""
    server = serve(right)
    answers = ask(server, photos)
    assert {name: answer.text for name, answer in answers.items()} == {
        "q0": "red", "q1": "blue", "q2": "green", "q3": "red", "q5": "nothing",
    }  # fmt: skip
    asked = {number_in(body): body for body in server.bodies()}
    image, words = asked[1]["messages"][0]["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (photos / "1.png").read_bytes()
    assert words == {"type": "text", "text": "what is there in image 1 and where?"}
    assert asked[2]["messages"][0]["content"].strip() == "what is there in image 2 and where and where?"  # fmt: skip
    assert (asked[1]["temperature"], asked[1]["max_tokens"], asked[1]["model"]) == (0.0, 9, "m")
    assert "seed" not in asked[1]


def test_trouble_that_passes_is_waited_for_and_the_rest_fails(serve: Serve, photos: Path) -> None:
    """A 500 is tried again; a refusal and a missing image fail with a reason, and never as an empty answer."""
    seen: list[int] = []

    def script(request: dict[str, Any], count: int) -> teacher_server.Answer:
        at = number_in(request)
        seen.append(at)
        if at == 0 and seen.count(0) == 1:
            return teacher_server.Answer({"error": {}}, status=500, headers={"retry-after-ms": "1"})
        if at == 1:
            return teacher_server.Answer({"error": {"message": "too large"}}, status=400)
        return right(request, count)

    (photos / "3.png").unlink()
    answers = ask(serve(script), photos, concurrency=1)
    assert answers["q0"].text == "red"
    failed = {name: answer.error for name, answer in answers.items() if answer.error}
    assert failed.keys() == {"q1", "q3"}
    assert "bad request: HTTP 400" in failed["q1"]
    assert "3.png does not exist" in failed["q3"]


def test_a_server_that_answers_nothing_is_left(serve: Serve, photos: Path) -> None:
    """After as many failures in a row as are allowed; a key that is not taken ends it at once, and is not told."""
    refusing = serve(lambda request, count: teacher_server.Answer({"error": {}}, status=400))
    with pytest.raises(LLMClientError, match="3 items in a row failed"):
        ask(refusing, photos, 30, concurrency=1, give_up_after=3)
    assert refusing.count == 3
    locked = serve(
        lambda request, count: teacher_server.Answer({"error": {"message": "bad secret-key"}}, 401)
    )
    with pytest.raises(LLMClientError, match="the server does not take the key") as caught:
        ask(locked, photos, concurrency=1)
    assert "secret-key" not in str(caught.value)


def test_the_only_model_of_a_server_need_not_be_named(serve: Serve) -> None:
    """One is taken; of several, the message lists them; what is no list is told."""
    one = serve(lambda request, count: teacher_server.Answer({"data": [{"id": "llava"}]}))
    assert ServerAnswerer(ServerAddress(url=one.url), AnswerConfig()).identity["model"] == f"llava at {one.url}"  # fmt: skip
    two = serve(lambda request, count: teacher_server.Answer({"data": [{"id": "a"}, {"id": "b"}]}))
    with pytest.raises(UsageError, match=r"serves 2 models \(a, b\); choose one with --served"):
        ServerAnswerer(ServerAddress(url=two.url), AnswerConfig())
    odd = serve(lambda request, count: completion("hello"))
    with pytest.raises(LLMClientError, match="does not say what it serves"):
        ServerAnswerer(ServerAddress(url=odd.url), AnswerConfig())


def test_a_server_does_not_weigh_options() -> None:
    """What it cannot do is refused before anything is sent."""
    with pytest.raises(UsageError, match="choice_method=letter needs a model folder"):
        ServerAnswerer(
            ServerAddress(url="http://127.0.0.1:9/v1", model="m"),
            AnswerConfig(choice_method="letter"),
        )


def test_half_a_character_in_an_answer_can_be_written(serve: Serve, photos: Path) -> None:
    """A lone surrogate becomes a replacement mark."""
    answers = ask(serve(lambda request, count: completion("a\ud800b")), photos, 1)
    assert answers["q0"].text == "a?b"
