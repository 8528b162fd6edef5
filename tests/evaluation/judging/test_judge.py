"""Client of a judge: faults are counted by rule, nothing is requested twice, and the budget is kept."""

import json
import os
import signal
import socket
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from caldera.errors import (
    EvaluationError,
    Interrupted,
    LLMClientError,
    UnknownNameError,
    UsageError,
)
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.llava_bench import LLAVA_BENCH
from caldera.evaluation.judging.judge import Judge
from caldera.evaluation.judging.verdicts import check_valid
from caldera.llm_client.budget import Price
from caldera.llm_client.client import RequestConfig
from tests.evaluation.judging.conftest import (
    KEY,
    MakeBench,
    Serve,
    answer_number,
    fair,
    judge_at,
    run_judge,
)
from tests.teacher_server import Answer, completion


def test_the_name_of_the_metric_identifies_the_judge_at(
    serve: Serve, make_bench: MakeBench
) -> None:
    """It has model, protocol and a digest, which depends on model, temperature and protocol, but not on the address."""
    server, bench = serve(fair), make_bench(3)
    scores = run_judge(bench, judge_at(server.url))
    digest = scores["judge_digest"]
    assert scores["metric"] == f"llava-bench/overall by little-judge (paper, {digest})"
    assert scores["answered_by"] == ["little-teacher-0613"]
    moved = judge_at("http://127.0.0.1:9/v1")
    assert moved.digest(scores["protocol_digest"]) == digest
    sampled = RequestConfig(temperature=0.2, max_repairs=0)
    digests = {
        digest,
        judge_at(server.url, model="other").digest(scores["protocol_digest"]),
        judge_at(server.url, sampled).digest(scores["protocol_digest"]),
        judge_at(server.url).digest("another protocol"),
    }
    assert len(digests) == 4
    reviews = (bench.folder / "out/reviews/run1.jsonl").read_text()
    assert digest in reviews
    assert json.loads((bench.folder / "out/scores.json").read_text()) == scores


FAULTS = {
    "unparsable": (completion("I would rather not say."), "no scores in the first line"),
    "one": (completion("8/10"), "one score of two"),
    "swapped": (completion("Assistant 2: 4, Assistant 1: 8"), "scores swapped"),
    "range": (completion("80 40"), "score out of range"),
    "empty": (completion(""), "empty reply"),
    "cut": (completion("Let me think", "length"), "no scores in the first line"),
    "busy": (Answer({"error": "busy"}, 500), "no reply"),
    "garbage": (Answer(b"<html>"), "no reply"),
    "refusal": (Answer({"error": {"code": "content_filter", "message": "no"}}, 400), "content policy"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_skipped_and_counted(serve: Serve, make_bench: MakeBench, kind: str) -> None:
    """H2: for any fault of two in a hundred, the metrics are those of the other 98, and not valid; never a -1."""
    fault, rule = FAULTS[kind]
    server = serve(lambda request, _: fault if answer_number(request) in (5, 50) else fair(request))
    bench = make_bench(100)
    scores = run_judge(bench, judge_at(server.url))
    metrics = scores["figures"]
    assert metrics["overall"] == 50.0
    assert metrics["reference"]["overall"] == 80.0
    assert (metrics["num_valid"], metrics["num_invalid"], metrics["errors"]) == (98, 2, {rule: 2})
    assert metrics["valid"] is False
    with pytest.raises(
        EvaluationError, match=rf"2 of 100 items have no usable verdict \(2 {rule}\)"
    ):
        check_valid(metrics)
    lines = [
        json.loads(line) for line in (bench.folder / "out/verdicts.jsonl").read_text().splitlines()
    ]
    assert [line["id"] for line in lines if line["failure"]] == ["5", "50"]
    again = LLAVA_BENCH.score_answer_files(Sources(), bench.folder / "out/reviews")
    assert again.metrics["overall"] == 50.0
    assert again.metrics["num_invalid"] == 2
    assert "-1" not in (bench.folder / "out/reviews/run1.jsonl").read_text()


def test_one_of_a_hundred_may_fail(serve: Serve, make_bench: MakeBench) -> None:
    """One percent is allowed, but counted."""
    server = serve(
        lambda request, _: completion("?") if answer_number(request) == 5 else fair(request)
    )
    metrics = run_judge(make_bench(100), judge_at(server.url))["figures"]
    check_valid(metrics)
    assert (metrics["num_valid"], metrics["num_invalid"], metrics["valid"]) == (99, 1, True)


def test_an_unreachable_judge_gives_no_score(make_bench: MakeBench) -> None:
    """There is no metric, every item is an error with its reason, and the run is not valid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    metrics = run_judge(make_bench(9), judge_at(f"http://127.0.0.1:{port}/v1"))["figures"]
    assert "overall" not in metrics
    assert (metrics["num_valid"], metrics["num_invalid"]) == (0, 9)
    assert {*metrics["errors"]} <= {"no reply", "not asked"}
    with pytest.raises(EvaluationError, match="9 of 9 items have no usable verdict"):
        check_valid(metrics)


def test_a_repaired_reply_counts_if_repairs_are_enabled(
    serve: Serve, make_bench: MakeBench
) -> None:
    """The judge gets feedback and is asked again; the setting is part of its digest."""

    def script(request: dict[str, Any], _count: int) -> Answer:
        repaired = len(request["messages"]) == 4
        return fair({"messages": request["messages"][:2]}) if repaired else completion("8/10")

    server = serve(script)
    metrics = run_judge(
        make_bench(3), judge_at(server.url, RequestConfig(max_repairs=1, temperature=0.0))
    )["figures"]
    assert (metrics["overall"], metrics["num_invalid"]) == (50.0, 0)
    assert server.count == 6
    assert "must hold nothing but two numbers" in server.bodies()[-1]["messages"][-1]["content"]


def test_only_changed_requests_are_sent_again(serve: Serve, make_bench: MakeBench) -> None:
    """The key of a request covers answer, model, protocol, parameters and the number of the run."""
    server, bench = serve(fair), make_bench(6)
    first = run_judge(bench, judge_at(server.url))
    assert run_judge(bench, judge_at(server.url)) == first
    assert server.count == 6
    bench.write_answers([f"answer {number}{' changed' * (number == 4)}" for number in range(6)])
    run_judge(bench, judge_at(server.url))
    assert server.count == 7
    run_judge(bench, judge_at(server.url, model="another-judge"))
    assert server.count == 13
    run_judge(bench, judge_at(server.url, RequestConfig(temperature=0.2, max_repairs=0)))
    assert server.count == 19
    run_judge(bench, judge_at(server.url), "both_orders")
    assert server.count == 31
    run_judge(bench, judge_at(server.url, RequestConfig(temperature=0.2, max_repairs=0)), runs=3)
    # Each run samples for itself; the first run is in the journal.
    assert server.count == 43
    run_judge(bench, judge_at(server.url), out="elsewhere")
    assert server.count == 49


def test_runs_have_files_and_a_standard_deviation(serve: Serve, make_bench: MakeBench) -> None:
    """Three runs of an inconsistent judge: mean, standard deviation, and review files that give the same scores."""
    server = serve(lambda request, count: completion(f"8 {2 + 2 * (count // 4)}"))
    bench = make_bench(4)
    sequential = RequestConfig(temperature=0.2, max_repairs=0, concurrency=1)
    metrics = run_judge(bench, judge_at(server.url, sequential), runs=3)["figures"]
    assert (metrics["runs"], metrics["overall"], metrics["std"]["overall"]) == (
        [25.0, 50.0, 75.0],
        50.0,
        20.4,
    )
    assert metrics["num_valid"] == 12
    again = LLAVA_BENCH.score_answer_files(Sources(), bench.folder / "out/reviews").metrics
    assert {name: again[name] for name in metrics} == metrics


def test_a_budget_ends_a_run_and_a_larger_one_resumes_it(
    serve: Serve, make_bench: MakeBench
) -> None:
    """Nothing is scored before all replies are there; received replies are not requested again."""
    server, bench = serve(fair), make_bench(9)
    with pytest.raises(
        LLMClientError,
        match=r"budget allows no further request; the replies so far are saved in .*resume",
    ):
        run_judge(bench, judge_at(server.url, max_requests=4))
    assert server.count == 4
    assert not (bench.folder / "out/scores.json").exists()
    assert run_judge(bench, judge_at(server.url, max_requests=9))["figures"]["num_valid"] == 9
    assert server.count == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_counts_the_verdicts_that_are_kept(
    serve: Serve, make_bench: MakeBench, number: signal.Signals
) -> None:
    """H1: replies in flight are awaited, and the next start requests only the others."""

    def script(request: dict[str, Any], count: int) -> Answer:
        if count == 4:
            os.kill(os.getpid(), number)
        return replace(fair(request), delay=0.1)

    server, bench = serve(script), make_bench(30)
    with pytest.raises(Interrupted, match=r"^stopped; (\d+) of 30 verdicts are kept in") as caught:
        run_judge(bench, judge_at(server.url))
    assert caught.value.exit_code == 128 + number
    num_kept = int(str(caught.value).split()[1])
    assert 4 < num_kept == server.count < 30
    assert run_judge(bench, judge_at(server.url))["figures"]["num_valid"] == 30
    assert server.count == 30


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_ends_the_run_at_once(
    serve: Serve, make_bench: MakeBench, status: int
) -> None:
    """They would fail every request: the error names the judge, and nothing is scored."""
    bench = make_bench(9)
    with pytest.raises(
        LLMClientError, match=r"the judge (does not accept the API key|has no model 'little-judge')"
    ):
        run_judge(bench, judge_at(serve(lambda _, __: Answer({"error": "no"}, status)).url))
    assert not (bench.folder / "out/scores.json").exists()


def test_the_key_is_sent_and_never_written(serve: Serve, make_bench: MakeBench) -> None:
    """It is not in the journal or a verdict, although the reply contains it."""
    server, bench = serve(lambda _, __: completion(f"8 4\n{KEY}")), make_bench(3)
    run_judge(bench, judge_at(server.url))
    assert KEY.encode() in server.requests[0]
    files = [path for path in (bench.folder / "out").rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not any(KEY in path.read_text() for path in files)


def test_invalid_settings_are_rejected(make_bench: MakeBench) -> None:
    """A judge without model, key or price, and an unknown protocol."""
    with pytest.raises(UsageError, match="give --judge-model"):
        judge_at("http://127.0.0.1:9/v1", model="")
    with pytest.raises(UsageError, match="no API key for OpenAI"):
        Judge(model="m")
    with pytest.raises(UsageError, match="--price PROMPT,REPLY"):
        Judge(model="m", key=SecretStr(KEY))
    Judge(model="m", key=SecretStr(KEY), price=Price(1.0, 2.0))
    with pytest.raises(
        UnknownNameError,
        match="no protocol of llava-bench is called 'papers'; did you mean 'paper'",
    ):
        run_judge(make_bench(3), judge_at("http://127.0.0.1:9/v1"), "papers")


def test_reviews_are_those_of_the_last_command(serve: Serve, make_bench: MakeBench) -> None:
    """After three runs and then one, the folder has one review file, so scoring it mixes no commands."""
    server, bench = serve(fair), make_bench(3)
    run_judge(bench, judge_at(server.url), runs=3)
    run_judge(bench, judge_at(server.url), runs=1)
    assert [path.name for path in (bench.folder / "out/reviews").iterdir()] == ["run1.jsonl"]
