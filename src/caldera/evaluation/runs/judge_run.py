"""An answer file in, a judge's verdicts and scores out, in a folder that the same command goes on in.

The folder holds `journal.jsonl` (every request and reply), `verdicts.jsonl` (one line for each verdict, read or not),
the verdicts in the benchmark's official layout, which `caldera evaluate score` reads, and `scores.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caldera import __version__
from caldera.errors import UnknownNameError, UsageError
from caldera.evaluation.benchmark import BenchmarkSpec, JudgeSpec, Sources
from caldera.evaluation.files import read_answers
from caldera.evaluation.judging.judge import Judge, JudgeReply, ask_judge, build_request
from caldera.evaluation.judging.protocols import AnswerOrder, JudgeCase, JudgingProtocol
from caldera.evaluation.judging.scores import average_runs
from caldera.evaluation.judging.verdicts import Verdict
from caldera.files.atomic import lock_folder, write_atomic, write_json
from caldera.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeRunConfig:
    """What is to be judged, how often, and where to."""

    task: BenchmarkSpec
    sources: Sources
    answers: Path
    protocol: str = ""
    """Name of the way to ask; the task's usual one where empty."""

    runs: int = 1
    """How often each answer is judged; above 1 the figures have a spread."""

    out: Path


def find_protocol(task: BenchmarkSpec, name: str) -> JudgingProtocol:
    """Return the judging protocol of a task called exactly `name`, the usual one where it is empty.

    Raises:
        UsageError: The task needs no judge.
        UnknownNameError: It has no such protocol.
    """
    protocols = _judge_spec(task).protocols
    name = name or next(iter(protocols))
    if name not in protocols:
        raise UnknownNameError(f"protocol of {task.name}", name, protocols)
    return protocols[name]


def _judge_spec(task: BenchmarkSpec) -> JudgeSpec:
    """Return how a task's answers are judged.

    Raises:
        UsageError: It needs no judge.
    """
    if task.judging is None:
        raise UsageError(
            f"{task.name} needs no judge; score its answers with: caldera evaluate score {task.name} --answers FILE"
        )
    return task.judging


def judge_answers(order: JudgeRunConfig, judge: Judge, progress: Progress) -> dict[str, Any]:
    """Have a judge read an answer file, write down what it said, and return the figures.

    Returns:
        What stands in `scores.json`: the judge and its digest, the protocol, and the task's figures under `figures`, of
        which `valid` tells whether they may be used.

    Raises:
        InputError: A file is broken, or answers, references or contexts are missing.
        UsageError: The task needs no judge, or another process works in the folder.
        TeacherError: The judge's key, quota or the budget ended the run; the same command goes on.
        OutputError: Something cannot be written.
    """
    judging, protocol = _judge_spec(order.task), find_protocol(order.task, order.protocol)
    answers = read_answers(order.answers)
    cases = judging.build_cases(order.sources, answers)
    settled = judging.settled_verdicts(order.sources, answers)
    with lock_folder(order.out):
        runs = judge_cases(cases, protocol, judge, order.runs, out=order.out, progress=progress)
        runs = [[*verdicts, *settled] for verdicts in runs]
        score = average_runs(
            [judging.score(verdicts) for verdicts in runs], order.task.primary_metric
        )
        digest = judge.digest(protocol.digest)
        scores = {
            "metric": f"{order.task.name}/{order.task.primary_metric} by {judge.model} ({protocol.name}, {digest})",
            "task": order.task.name,
            "judge": judge.model,
            "judge_digest": digest,
            "answered_by": sorted({one.model for run in runs for one in run if one.model}),
            "protocol": protocol.name,
            "protocol_digest": protocol.digest,
            "temperature": judge.request_config.temperature,
            "max_tokens": judge.request_config.max_tokens,
            "judge_runs": order.runs,
            "answers": str(order.answers),
            "figures": score.metrics,
            "caldera": __version__,
        }
        lines = (
            {"run": number, **asdict(verdict)}
            for number, verdicts in enumerate(runs, start=1)
            for verdict in verdicts
        )
        write_atomic(order.out / "verdicts.jsonl", (json.dumps(line) + "\n" for line in lines))
        _write_official(order.out, judging.files(runs, digest))
        write_json(order.out / "scores.json", scores)
    return scores


def _write_official(out: Path, files: Mapping[str, str]) -> None:
    """Write the verdicts in the official layout; a folder of them holds those of this command alone."""
    for name, text in files.items():
        write_atomic(out / name, text)
    written = {out / name for name in files}
    for folder in {path.parent for path in written} - {out}:
        for stale in set(folder.glob("*.jsonl")) - written:
            stale.unlink()


def judge_cases(
    cases: Sequence[JudgeCase],
    protocol: JudgingProtocol,
    judge: Judge,
    runs: int,
    *,
    out: Path,
    progress: Progress,
) -> list[list[Verdict]]:
    """Return the verdicts on every case, a list for each run, in the order of the cases.

    Args:
        cases: The answers.
        protocol: How the judge is asked.
        judge: Who is asked.
        runs: How often each is judged.
        out: Folder of the journal, which the caller holds.
        progress: Follows the work.

    Raises:
        TeacherError: The judge's key, quota or the budget ended the run.
    """
    digest = judge.digest(protocol.digest)
    asked = [
        (run, case, shown)
        for run in range(1, runs + 1)
        for case in cases
        for shown in protocol.orders
    ]
    hearings = [
        build_request(
            digest, f"{case.id}, {shown}", run, protocol.build_messages(case, shown), protocol.parse
        )
        for run, case, shown in asked
    ]
    opinions = ask_judge(judge, protocol.digest, hearings, out=out, progress=progress)
    verdicts: list[list[Verdict]] = [[] for _ in range(runs)]
    for (run, case, shown), opinion in zip(asked, opinions, strict=True):
        verdicts[run - 1].append(_verdict(case, shown, opinion, protocol))
    return verdicts


def _verdict(
    case: JudgeCase, shown: AnswerOrder, opinion: JudgeReply, protocol: JudgingProtocol
) -> Verdict:
    """Make a verdict of what the judge said, its scores turned so that the reference's comes first."""
    scores = () if opinion.failure else protocol.parse(opinion.text)
    return Verdict(
        id=case.id,
        category=case.category,
        order=shown,
        scores=scores[::-1] if shown == "candidate first" else scores,
        failure=opinion.failure,
        detail=opinion.detail,
        text=opinion.text,
        model=opinion.model,
    )
