"""A run against a real server: every fault by its kind, nothing paid twice, nothing mixed, nothing but text sent."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from caldera.annotations.registry import SourceOptions
from caldera.conversation import read_conversations
from caldera.errors import InputError, LLMClientError, UnknownNameError, UsageError
from caldera.instructions.dialogues import GeneratedData
from caldera.instructions.generate import GenerateConfig, estimate_data_cost, generate_data
from caldera.instructions.llm_teacher.teacher import LLMTeacherConfig, run_folder
from caldera.llm_client.budget import Price
from caldera.llm_client.client import RequestConfig
from caldera.progress import NoProgress
from tests.teacher_server import Answer, Script, TeacherServer, completion, good

KEY = "sk-loopback-0123456789abcdef"
Serve = Callable[..., TeacherServer]
Coco = Callable[[int], Path]
FAST = RequestConfig(concurrency=5, initial_backoff=0.001, retries=3)


def order(
    folder: Path,
    url: str,
    kinds: str = "reasoning",
    sending: RequestConfig = FAST,
    **more: Any,  # noqa: ANN401 - fields of Teaching
) -> GenerateConfig:
    """Order a run of the openai teacher."""
    teaching = LLMTeacherConfig(
        base_url=url,
        model="little-teacher",
        key=SecretStr(KEY),
        sending=sending,
        **{"price": Price(1.0, 2.0), **more},
    )
    options = SourceOptions()
    return GenerateConfig(
        source="coco", path=folder, options=options, teaching=teaching, kinds=kinds
    )


def generate(asked: GenerateConfig, out: Path) -> GeneratedData:
    """Carry an order out."""
    return generate_data(asked, out, NoProgress())


def lines(out: Path, name: str) -> list[dict[str, Any]]:
    """Read a list of a run's folder."""
    return [json.loads(line) for line in (run_folder(out) / name).read_text().splitlines()]


def once(fault: Answer) -> Script:
    """Fail every request the first time it comes, and answer it the second time."""
    seen: set[str] = set()

    def script(request: dict[str, Any], _number: int) -> Answer:
        shown = request["messages"][-1]["content"]
        if shown in seen:
            return good(request)
        seen.add(shown)
        return fault

    return script


def test_all_four_kinds_are_written_and_accounted_for(
    tmp_path: Path, serve: Serve, coco: Coco
) -> None:
    """Every record loads as LLaVA's JSON, and each has a line saying where it came from."""
    server = serve(lambda request, _: good(request))
    out = tmp_path / "data.json"
    written = generate(order(coco(30), server.url, "conversation,detail,reasoning,context"), out)
    records = read_conversations(out)
    assert server.count == len(records) == written.by_kind.total()
    assert written.by_kind["reasoning"] == 30
    assert written.by_kind["conversation"] == pytest.approx(30 * 58 / 77, abs=8)
    assert written.by_kind["detail"] == pytest.approx(30 * 23 / 77, abs=8)
    assert {*written.by_kind} == {"conversation", "detail", "reasoning", "context"}
    assert [line["id"] for line in lines(out, "provenance.jsonl")] == [each.id for each in records]
    first = lines(out, "provenance.jsonl")[0]
    assert first["teacher"] == "little-teacher-0613"
    assert first["source"] == ["0000"]
    assert lines(out, "refused.jsonl") == lines(out, "failed.jsonl") == []
    for each in records:
        assert (len(each.images) > 1) is each.id.endswith("context")


def test_dialogues_of_a_kind_are_asked_for_together(
    tmp_path: Path, serve: Serve, coco: Coco
) -> None:
    """A server with one slot then keeps the beginning that their requests share; the file keeps the images' order."""
    server = serve(lambda request, _: good(request))
    asked = order(
        coco(20), server.url, "conversation,detail,reasoning", RequestConfig(concurrency=1)
    )
    generate(asked, tmp_path / "data.json")
    systems = [body["messages"][0]["content"] for body in server.bodies()]
    assert sum(one != other for one, other in pairwise(systems)) == 2
    names = [each.id for each in read_conversations(tmp_path / "data.json")]
    assert [name.split("-")[0] for name in names] == sorted(name.split("-")[0] for name in names)


def test_what_a_policy_refused_is_not_asked_again(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """Neither is what was kept: a run that is done sends nothing more."""
    no = Answer({"error": {"message": "no", "code": "content_policy_violation"}}, 400)
    server = serve(lambda request, number: no if number == 2 else good(request))
    asked, out = order(coco(6), server.url), tmp_path / "data.json"
    generate(asked, out)
    assert server.count == 6
    assert len(lines(out, "refused.jsonl")) == 1
    generate(asked, out)
    assert server.count == 6
    assert len(lines(out, "refused.jsonl")) == 1


def test_only_text_goes_out(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """No request holds an image, its bytes in any spelling, its path, or any part that is not text."""
    folder = coco(6)
    server = serve(lambda request, _: good(request))
    generate(order(folder, server.url, "conversation:1,detail:1,context:1"), tmp_path / "data.json")
    assert server.count == 18
    for raw, body in zip(server.requests, server.bodies(), strict=True):
        assert {*body} == {"model", "messages", "max_tokens", "temperature"}
        for message in body["messages"]:
            assert {*message} == {"role", "content"}
            assert isinstance(message["content"], str)
        assert not re.search(rb"image_url|base64|data:image|\.png|iVBORw0KGgo|\x89PNG|/small/", raw)


def test_the_key_is_sent_and_never_written(
    tmp_path: Path,
    serve: Serve,
    coco: Coco,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in a file, a log or an error, although the server spells it out in replies and faults."""

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
    with pytest.raises(LLMClientError) as ended:
        generate(order(coco(40), server.url, sending=RequestConfig(concurrency=1)), out)
    assert f"Authorization: Bearer {KEY}".lower().encode() in server.requests[0].lower()
    said = capfd.readouterr()
    texts = [str(ended.value), said.out, said.err, caplog.text]
    files = [path for path in out.parent.rglob("*") if path.is_file()]
    assert len(files) == 7
    texts += [path.read_text() for path in files]
    assert not any(KEY in text for text in texts)
    assert "[key]" in (run_folder(out) / "journal.jsonl").read_text()


TOO_MANY = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}


@pytest.mark.parametrize(
    "fault",
    [
        Answer(TOO_MANY, 429),
        Answer(TOO_MANY, 429, {"retry-after": "0"}),
        Answer(TOO_MANY, 429, {"retry-after": "-3"}),
        Answer(TOO_MANY, 429, {"retry-after": "soon"}),
        Answer(TOO_MANY, 429, {"retry-after-ms": "20"}),
        Answer(TOO_MANY, 429, {"retry-after": formatdate(0, usegmt=True)}),
        Answer(b"<html>busy</html>", 500),
        Answer(b"", 502),
        Answer({"error": "overloaded"}, 503, {"retry-after": "0.01"}),
        Answer({"error": {"type": "overloaded_error"}}, 529),
        Answer({}, 408),
        Answer(completion("x" * 500).content, cut=100),
        Answer(b"", cut=0),
        Answer(b"<html>Welcome</html>", headers={"content-type": "text/html"}),
        Answer({}),
        Answer({"choices": []}),
        Answer({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
        Answer(b'{"choices": [{"mess'),
        Answer(b"[" * 5000),
    ],
)  # fmt: skip
def test_what_passes_is_asked_again(
    tmp_path: Path, serve: Serve, coco: Coco, fault: Answer
) -> None:
    """Each dialogue meets the fault once and is then written; nothing is lost or doubled."""
    server = serve(once(fault))
    out = tmp_path / "data.json"
    generate(order(coco(7), server.url), out)
    assert server.count == 14
    assert len({each.id for each in read_conversations(out)}) == 7
    assert lines(out, "failed.jsonl") == lines(out, "refused.jsonl") == []


@pytest.mark.parametrize(
    ("fault", "rule", "listed", "requests"),
    [
        (Answer({"error": {"message": "no", "code": "content_policy_violation"}}, 400), "content policy", "refused", 1),
        (Answer({"error": {"message": "long", "code": "context_length_exceeded"}}, 400), "bad request", "failed", 1),
        (Answer({"error": {"message": "no"}}, 422), "bad request", "failed", 1),
        (completion("It goes on and", finish="length"), "cut off", "refused", 1),
        (completion(None, finish="length"), "cut off", "refused", 1),
        (completion(None, finish="content_filter"), "content filter", "refused", 1),
        (completion("  "), "empty reply", "refused", 1),
        (completion("No form at all."), "form", "refused", 2),
        (completion('```json\n{"question": "q", "answer": "a", "more": 1}\n```'), "form", "refused", 2),
        (completion("Question:\nWhat is <image>?\n===\nAnswer:\nA mark."), "image mark", "refused", 1),
        (Answer({"error": "down"}, 503), "no reply", "failed", 4),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_listed_with_its_reason(
    tmp_path: Path, serve: Serve, coco: Coco, fault: Answer, rule: str, listed: str, requests: int
) -> None:
    """One image meets it each time; the others are written, and the list has its rule and reply."""

    def script(request: dict[str, Any], _number: int) -> Answer:
        told = json.dumps(request["messages"][-3:])
        return fault if "seen 3 times" in told else good(request)

    server = serve(script)
    out = tmp_path / "data.json"
    written = generate(order(coco(7), server.url), out)
    assert len(read_conversations(out)) == 6
    assert written.rejected == {f"reasoning: {rule}": 1}
    [line] = lines(out, f"{listed}.jsonl")
    assert (line["id"], line["rule"]) == ("0003-reasoning", rule)
    assert server.count == 6 + requests
    if listed == "refused" and isinstance(fault.body, dict) and "choices" in fault.body:
        assert line["reply"] == (fault.body["choices"][0]["message"]["content"] or "")


def test_a_repair_is_asked_for_with_the_reply_and_the_fault(
    tmp_path: Path, serve: Serve, coco: Coco
) -> None:
    """The second request holds the first reply and what was wrong; the record says that there were two."""
    out = tmp_path / "data.json"
    seen: list[dict[str, Any]] = []

    def script(request: dict[str, Any], number: int) -> Answer:
        seen.append(request)
        return good(request) if number else completion("Who? A dog.")

    server = serve(script)
    generate(order(coco(1), server.url), out)
    assert seen[1]["messages"][-2]["content"] == "Who? A dog."
    assert [message["role"] for message in seen[1]["messages"][-3:]] == [
        "user",
        "assistant",
        "user",
    ]
    assert "not in the form" in seen[1]["messages"][-1]["content"]
    assert lines(out, "provenance.jsonl")[0]["replies"] == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Answer({"error": {"code": "insufficient_quota"}}, 429, {"retry-after": "0"}), "quota is used up"),
        (Answer({"error": {"message": "pay", "type": "credit_balance_exhausted"}}, 429), "quota is used up"),
        (Answer({"error": {"message": "pay"}}, 402), "quota is used up"),
        (Answer({"error": {"message": "who?", "code": "invalid_api_key"}}, 401), "does not take the key"),
        (Answer({"error": {"message": "not here"}}, 403), "does not take the key"),
        (Answer({"error": {"message": "what?"}}, 404), "no model 'little-teacher'"),
    ],
)  # fmt: skip
def test_what_would_meet_every_request_stops_the_run_at_once(
    tmp_path: Path, serve: Serve, coco: Coco, fault: Answer, told: str
) -> None:
    """Exit code 5; what is finished is kept, nothing is sent after what was in flight, and the run can go on."""
    server = serve(lambda request, number: good(request) if number < 10 else fault)
    out, asked = tmp_path / "data.json", order(coco(50), server.url)
    with pytest.raises(LLMClientError, match=f"{told}.*same command goes on") as ended:
        generate(asked, out)
    assert ended.value.exit_code == 5
    assert 11 <= server.count <= 10 + FAST.concurrency
    assert len(read_conversations(out)) == 10
    before = server.count
    server.script = lambda request, _: good(request)
    generate(asked, out)
    assert server.count - before == 40
    assert len(read_conversations(out)) == 50


def test_a_wish_for_rest_holds_back_all_workers(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """After a 429 with 0.4 s, nothing arrives for that long; a huge wish is cut at the longest wait."""
    came: list[float] = []

    def script(request: dict[str, Any], number: int) -> Answer:
        came.append(time.monotonic())
        wish = {"retry-after": "99999999"} if number == 20 else {"retry-after-ms": "400"}
        return Answer(TOO_MANY, 429, wish) if number in (5, 20) else good(request)

    server = serve(script)
    sending = RequestConfig(concurrency=3, initial_backoff=0.001, max_backoff=0.5)
    generate(order(coco(40), server.url, sending=sending), tmp_path / "data.json")
    gaps = sorted(later - sooner for sooner, later in pairwise(came))
    assert gaps[-2] > 0.3
    assert server.count == 42


def test_a_server_that_is_down_ends_the_run(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """Not every dialogue of a night is burnt: after so many in a row it stops, and tells the last reason."""
    server = serve(lambda request, _: Answer({"error": "down"}, 503))
    sending = RequestConfig(concurrency=2, retries=1, initial_backoff=0.0, give_up_after=4)
    with pytest.raises(LLMClientError, match=r"4 requests in a row failed.*HTTP 503"):
        generate(order(coco(40), server.url, sending=sending), tmp_path / "data.json")
    assert server.count <= 12


def test_no_one_listening_is_a_failure_by_name(tmp_path: Path, coco: Coco) -> None:
    """A connection that is refused costs nothing, is tried again, and ends the run."""
    sending = RequestConfig(retries=1, initial_backoff=0.0, give_up_after=1, concurrency=1)
    with pytest.raises(LLMClientError, match="connection: Connect"):
        generate(order(coco(3), "http://127.0.0.1:9/v1", sending=sending), tmp_path / "data.json")


@pytest.mark.parametrize("limit", [{"max_requests": 13}, {"max_cost": 0.03}])
def test_a_budget_is_never_exceeded_and_can_be_raised(
    tmp_path: Path, serve: Serve, coco: Coco, limit: dict[str, Any]
) -> None:
    """The server's own count stays below, over two starts; a greater budget finishes the rest."""
    server = serve(lambda request, _: good(request))
    folder, out = coco(40), tmp_path / "data.json"
    for _ in range(2):
        with pytest.raises(LLMClientError, match="the budget holds no further request"):
            generate(order(folder, server.url, **limit), out)
        assert 5 <= server.count <= 25
        assert server.count <= limit.get("max_requests", 99)
        assert server.count * 0.0012 <= limit.get("max_cost", 99)
    generate(order(folder, server.url), out)
    assert server.count == 40
    assert len(read_conversations(out)) == 40


def test_an_unknown_price_needs_leave(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """Nothing is sent until it is given."""
    server = serve(lambda request, _: good(request))
    folder = coco(3)
    with pytest.raises(UsageError, match="--unpriced"):
        generate(order(folder, server.url, price=None), tmp_path / "data.json")
    assert server.count == 0
    generate(order(folder, server.url, price=None, unpriced=True), tmp_path / "data.json")
    assert server.count == 3


def test_replies_made_otherwise_are_not_mixed(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """Another temperature is refused by name; allowed, both stand in the run and each record says which it is."""
    server = serve(lambda request, number: good(request) if number < 5 else Answer({}, 401))
    folder, out = coco(9), tmp_path / "data.json"
    with pytest.raises(LLMClientError):
        generate(order(folder, server.url), out)
    other = RequestConfig(concurrency=5, temperature=0.1)
    server.script = lambda request, _: good(request)
    with pytest.raises(UsageError, match=r"temperature was 0\.7, is 0\.1.*--allow-mixed"):
        generate(order(folder, server.url, sending=other), out)
    generate(order(folder, server.url, sending=other, allow_mixed=True), out)
    runs = Counter(line["run"] for line in lines(out, "provenance.jsonl"))
    assert sorted(runs.values()) == [4, 5]
    assert len(json.loads((run_folder(out) / "run.json").read_text())) == 2


def test_speed_and_address_are_not_part_of_what_a_run_is(
    tmp_path: Path, serve: Serve, coco: Coco
) -> None:
    """A finished run started again at another address sends nothing; another kind is added to it."""
    folder, out = coco(5), tmp_path / "data.json"
    generate(order(folder, serve(lambda request, _: good(request)).url), out)
    other = serve(lambda request, _: good(request))
    generate(order(folder, other.url, sending=RequestConfig(concurrency=2)), out)
    assert other.count == 0
    generate(order(folder, other.url, "reasoning,detail:1"), out)
    assert other.count == 5
    assert len(read_conversations(out)) == 10


def test_a_replay_gives_the_same_file_without_a_model(
    tmp_path: Path, serve: Serve, coco: Coco
) -> None:
    """From the run's folder; what was never recorded is listed as failed."""
    server = serve(lambda request, _: good(request))
    folder, out = coco(6), tmp_path / "data.json"
    asked = order(folder, server.url, "reasoning,detail:1")
    generate(asked, out)
    replay = LLMTeacherConfig(teacher="replay", replay_from=run_folder(out))
    again = GenerateConfig(
        source="coco",
        path=folder,
        options=SourceOptions(),
        teaching=replay,
        kinds="detail:1,reasoning",
    )
    generate(again, tmp_path / "again.json")
    assert sorted(map(str, read_conversations(tmp_path / "again.json"))) == sorted(
        map(str, read_conversations(out))
    )
    assert server.count == 12


def test_a_plan_sends_nothing_and_tells_all(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """Counts by kind, tokens within a fifth of what is sent, and a cost between none and the most."""
    server = serve(lambda request, _: good(request))
    asked = order(coco(12), server.url, "conversation:1,reasoning")
    assert asked.teaching is not None
    planned = estimate_data_cost(asked, asked.teaching)
    assert server.count == 0
    assert planned.dialogues == {"conversation": 12, "reasoning": 12}
    generate(asked, tmp_path / "data.json")
    letters = sum(
        len(message["content"]) for body in server.bodies() for message in body["messages"]
    )
    assert planned.prompt_tokens == pytest.approx(letters / 4, rel=0.05)
    assert planned.cost is not None
    assert planned.most_cost is not None
    assert 0 < planned.cost < planned.most_cost


def test_what_cannot_be_ordered_is_told(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """A kind without prompts, a missing model, an address that is none, OpenAI without a key, no journal."""
    folder, out = coco(2), tmp_path / "data.json"
    url = serve(lambda request, _: good(request)).url
    with pytest.raises(UsageError, match="not vqa"):
        generate(order(folder, url, "vqa"), out)
    with pytest.raises(UsageError, match="no address"):
        generate(order(folder, "localhost:8000"), out)
    with pytest.raises(UnknownNameError, match="did you mean 'chinese'"):
        generate(order(folder, url, language="chines"), out)

    def plain(**more: Any) -> GenerateConfig:  # noqa: ANN401 - fields of Teaching
        teaching = LLMTeacherConfig(**{"price": Price(0, 0), **more})
        return GenerateConfig(
            source="coco", path=folder, options=SourceOptions(), teaching=teaching
        )

    with pytest.raises(UsageError, match="--model"):
        generate(plain(), out)
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        generate(plain(model="m"), out)
    with pytest.raises(UsageError, match="--recorded"):
        generate(plain(teacher="replay"), out)


def test_a_run_without_one_good_reply_is_an_error(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """It says what was refused, and where the replies are; no empty data file is left."""
    server = serve(lambda request, _: completion("No."))
    out = tmp_path / "data.json"
    with pytest.raises(InputError, match=r"no reply could be used.*form.*refused\.jsonl"):
        generate(order(coco(2), server.url), out)
    assert not out.exists()
    assert len(lines(out, "refused.jsonl")) == 2


def test_chinese_prompts_go_out_in_chinese(tmp_path: Path, serve: Serve, coco: Coco) -> None:
    """And descriptions are asked for in Chinese."""
    server = serve(
        lambda request, number: completion(
            f"厨房里有一只红色的东西，旁边写着{number * 7919}这个数字，别的什么也看不清楚。"
        )
    )
    out = tmp_path / "data.json"
    generate(order(coco(3), server.url, "detail:1", language="chinese"), out)
    assert "视觉助手" in server.bodies()[0]["messages"][0]["content"]
    assert all("请" in each.turns[0].text for each in read_conversations(out))
