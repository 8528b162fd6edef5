"""Judging of an answer file into a folder; the same command resumes.

The folder holds `journal.jsonl` (every request and reply), `verdicts.jsonl` (one line per verdict, parsed or not), the
verdicts in the benchmark's official format, which `caldera evaluate score` reads, and `scores.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caldera import __version__
from caldera.errors import UnknownNameError, UsageError
from caldera.evaluation.answer_matching import match_answers
from caldera.evaluation.benchmark import BenchmarkSpec, JudgeSpec, Sources
from caldera.evaluation.judging.judge import Judge, JudgeReply, ask_judge, build_request
from caldera.evaluation.judging.protocols import AnswerOrder, JudgeCase, JudgingProtocol
from caldera.evaluation.judging.scores import average_runs
from caldera.evaluation.judging.verdicts import Verdict
from caldera.files.atomic import lock_folder, write_atomic, write_json
from caldera.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeRunConfig:
    """Answers to judge, protocol, number of runs, and output folder."""

    spec: BenchmarkSpec
    sources: Sources
    answers: Path
    protocol: str = ""
    """Name of the judging protocol; the benchmark's default if empty."""

    runs: int = 1
    """Number of verdicts on each answer; above 1 the scores have a standard deviation."""

    out: Path


def find_protocol(spec: BenchmarkSpec, name: str) -> JudgingProtocol:
    """Return the judging protocol with exactly this name, the default if it is empty.

    Raises:
        UsageError: The benchmark needs no judge.
        UnknownNameError: The benchmark has no such protocol.
    """
    protocols = _judge_spec(spec).protocols
    name = name or next(iter(protocols))
    if name not in protocols:
        raise UnknownNameError(f"protocol of {spec.name}", name, protocols)
    return protocols[name]


def _judge_spec(spec: BenchmarkSpec) -> JudgeSpec:
    if spec.judging is None:
        raise UsageError(
            f"{spec.name} needs no judge; score its answers with: caldera evaluate score {spec.name} --answers FILE"
        )
    return spec.judging


def judge_answers(config: JudgeRunConfig, judge: Judge, progress: Progress) -> dict[str, Any]:
    """Judge an answer file, write the folder, and return the scores.

    Returns:
        The content of `scores.json`: the judge and its digest, the protocol, and under `figures` the benchmark's
        metrics, of which `valid` is false if too many verdicts are missing.

    Raises:
        InputError: A file is invalid, or answers, references or descriptions of images are missing.
        UsageError: The benchmark needs no judge, or another process uses the folder.
        LLMClientError: The judge's key, quota or the budget ended the run; the same command resumes.
        OutputError: A file cannot be written.
    """
    judging, protocol = _judge_spec(config.spec), find_protocol(config.spec, config.protocol)
    items = config.spec.load(config.sources).items
    answers = match_answers(config.sources.read_answers(config.answers), items, config.answers)
    cases = judging.build_cases(config.sources, answers)
    settled = judging.settled_verdicts(config.sources, answers)
    with lock_folder(config.out):
        runs = judge_cases(cases, protocol, judge, config.runs, out=config.out, progress=progress)
        runs = [[*verdicts, *settled] for verdicts in runs]
        score = average_runs(
            [judging.score(verdicts) for verdicts in runs], config.spec.primary_metric
        )
        digest = judge.digest(protocol.digest)
        scores = {
            "metric": f"{config.spec.name}/{config.spec.primary_metric} by {judge.model} ({protocol.name}, {digest})",
            "task": config.spec.name,
            "judge": judge.model,
            "judge_digest": digest,
            "answered_by": sorted(
                {verdict.model for run in runs for verdict in run if verdict.model}
            ),
            "protocol": protocol.name,
            "protocol_digest": protocol.digest,
            "temperature": judge.request_config.temperature,
            "max_tokens": judge.request_config.max_tokens,
            "judge_runs": config.runs,
            "answers": str(config.answers),
            "figures": score.metrics,
            "caldera": __version__,
        }
        lines = (
            {"run": number, **asdict(verdict)}
            for number, verdicts in enumerate(runs, start=1)
            for verdict in verdicts
        )
        write_atomic(config.out / "verdicts.jsonl", (json.dumps(line) + "\n" for line in lines))
        _write_official(config.out, judging.files(runs, digest))
        write_json(config.out / "scores.json", scores)
    return scores


def _write_official(out: Path, files: Mapping[str, str]) -> None:
    """Write the verdicts in the official format; remove files of earlier runs from its folder."""
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
        cases: Answers with their references.
        protocol: Prompt and parser.
        judge: The model that judges.
        runs: Number of verdicts on each answer.
        out: Folder of the journal, which the caller has locked.
        progress: Progress reporting.

    Raises:
        LLMClientError: The judge's key, quota or the budget ended the run.
    """
    digest = judge.digest(protocol.digest)
    plan = [
        (run, case, order)
        for run in range(1, runs + 1)
        for case in cases
        for order in protocol.orders
    ]
    requests = [
        build_request(
            digest, f"{case.id}, {order}", run, protocol.build_messages(case, order), protocol.parse
        )
        for run, case, order in plan
    ]
    replies = ask_judge(judge, protocol.digest, requests, out=out, progress=progress)
    verdicts: list[list[Verdict]] = [[] for _ in range(runs)]
    for (run, case, order), reply in zip(plan, replies, strict=True):
        verdicts[run - 1].append(_verdict(case, order, reply, protocol))
    return verdicts


def _verdict(
    case: JudgeCase, order: AnswerOrder, reply: JudgeReply, protocol: JudgingProtocol
) -> Verdict:
    """Return the verdict of a reply, with the reference's score first."""
    scores = () if reply.failure else protocol.parse(reply.text)
    return Verdict(
        id=case.id,
        category=case.category,
        order=order,
        scores=scores[::-1] if order == "candidate first" else scores,
        failure=reply.failure,
        detail=reply.detail,
        text=reply.text,
        model=reply.model,
    )
