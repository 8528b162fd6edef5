"""The API key is sent, and never written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import LLMClientError
from caldera.instructions.llm_teacher.teacher import run_folder
from caldera.llm_client.client import RequestConfig
from tests.instructions.llm_teacher.runs import KEY, generate, teacher_config
from tests.teacher_server import Answer, TeacherServer, completion, good, write_coco


def test_the_key_is_sent_and_never_written(
    tmp_path: Path,
    serve: Callable[..., TeacherServer],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not in a file, a log or an error, although the server repeats it in replies and faults."""

    def script(request: dict[str, Any], number: int) -> Answer:
        fault = {"error": {"message": f"bad key {KEY}", "code": f"x{KEY}"}}
        match number % 4:
            case 0:
                return Answer(fault, 400)
            case 1:
                return completion(f"Question:\nWhat is {KEY}?\n===\nAnswer:\nA key.")
            case 2:
                return completion(f"My key is {KEY}", finish="length", model=f"m-{KEY}")
        return good(request) if number < 20 else Answer(fault, 401)

    server = serve(script)
    caplog.set_level("DEBUG")
    out = tmp_path / "out" / "data.json"
    config = teacher_config(
        write_coco(tmp_path / "coco", 40), server.url, request_config=RequestConfig(concurrency=1)
    )
    with pytest.raises(LLMClientError) as caught:
        generate(config, out)
    assert f"Authorization: Bearer {KEY}".lower().encode() in server.requests[0].lower()
    output = capfd.readouterr()
    texts = [str(caught.value), output.out, output.err, caplog.text]
    files = [path for path in out.parent.rglob("*") if path.is_file()]
    assert len(files) == 7
    texts += [path.read_text() for path in files]
    assert not any(KEY in text for text in texts)
    assert "[key]" in (run_folder(out) / "journal.jsonl").read_text()
