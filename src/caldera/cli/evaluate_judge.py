"""Commands `caldera evaluate judge` and `caldera evaluate ensemble`: an LLM reads existing answers."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from caldera.cli.data import ApiKeyEnv, MaxCost, MaxRequests, NoPrice, Price
from caldera.cli.options import print_result, stdout_console

if TYPE_CHECKING:
    from caldera.evaluation.benchmark import Sources
    from caldera.evaluation.judging.judge import Judge

SET_HELP = """
Setting of the requests: temperature, max_tokens, seed, max_repairs, concurrency, requests_per_minute, timeout,
retries ... Repeatable.
"""
CONTEXT_HELP = """
Descriptions of the images. \\[default: context.jsonl or caps_boxes_coco2014_val_80.jsonl next to the questions]
"""
REFERENCES_HELP = """
Reference answers, such as answers_gpt4.jsonl; those of mm-vet and custom are in the questions.
"""

Questions = Annotated[Path | None, typer.Option(help="Official question file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JudgeUrl = Annotated[
    str,
    typer.Option(
        help="URL of the judge: OpenAI, vLLM, llama.cpp, Ollama, caldera ... \\[default: OpenAI]"
    ),
]
JudgeModel = Annotated[str, typer.Option(help="Name of the judge's model.")]
SetJudge = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=SET_HELP)]
References = Annotated[Path | None, typer.Option(help=REFERENCES_HELP)]
Context = Annotated[Path | None, typer.Option(help=CONTEXT_HELP)]
Protocol = Annotated[
    str, typer.Option(help="paper: the reference first; both_orders: each answer twice.")
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder of the verdicts.")]
Judged = Annotated[str, typer.Argument(help="llava-bench, llava-bench-coco, mm-vet or custom.")]
AnswerFile = Annotated[Path, typer.Option(help="Answer file, official or LLaVA's.")]
AnswerField = Annotated[
    str,
    typer.Option(metavar="NAME", help="Field or column of the answers. \\[default: recognized]"),
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Count empty answers as wrong, not as an error.")
]
Runs = Annotated[int, typer.Option(min=1, help="Number of verdicts on each answer.")]


def judge(
    benchmark: Judged,
    answers: AnswerFile,
    questions: Questions = None,
    annotations: References = None,
    context: Context = None,
    answer_field: AnswerField = "",
    allow_empty: AllowEmpty = False,
    judge_url: JudgeUrl = "",
    judge_model: JudgeModel = "",
    protocol: Protocol = "paper",
    runs: Runs = 1,
    out_folder: OutFolder = Path("judged"),
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    price: Price = None,
    no_price: NoPrice = False,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    settings: SetJudge = None,
    as_json: AsJson = False,
) -> None:
    """Judge open answers with a language model, and score its verdicts. Repeat the command to resume.

    Verdicts that cannot be parsed are excluded and counted; over one percent, the run is not valid (exit code 6).

    [bold]Examples[/bold]

      caldera evaluate judge mm-vet --answers a.json --questions mm-vet.json --judge-model gpt-4o --price 2.5,10

      caldera evaluate judge llava-bench --answers a.jsonl --questions questions.jsonl
      --annotations answers_gpt4.jsonl --protocol both_orders --judge-url http://127.0.0.1:8000/v1 --judge-model qwen
      --out judged/one
    """
    from caldera.evaluation.benchmarks.registry import get_benchmark
    from caldera.evaluation.judging.verdicts import check_valid
    from caldera.evaluation.runs.judge_run import JudgeRunConfig, find_protocol, judge_answers
    from caldera.progress import default_progress

    spec = get_benchmark(benchmark)
    defaults = find_protocol(spec, protocol)
    request_settings = [f"temperature={defaults.temperature}", f"max_tokens={defaults.max_tokens}"]
    llm_judge = _judge_from(
        (judge_url, judge_model, api_key_env),
        price,
        [*request_settings, *(settings or ())],
        no_price=no_price,
        max_cost=max_cost,
        max_requests=max_requests,
    )
    captions = context or _context_next_to(questions)
    sources = sources_from(answer_field, allow_empty, questions, annotations, captions=captions)
    config = JudgeRunConfig(
        spec=spec, sources=sources, answers=answers, protocol=protocol, runs=runs, out=out_folder
    )
    scores = judge_answers(config, llm_judge, default_progress())
    _print_scores(scores, out_folder, as_json)
    check_valid(scores["figures"])


def ensemble(
    benchmark: Annotated[str, typer.Argument(help="scienceqa.")],
    answers: Annotated[Path, typer.Option(help="Answers of the model that sees the images.")],
    second: Annotated[Path, typer.Option(help="Answers of the second model.")],
    questions: Questions = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="Official file of correct answers, for the table's columns."),
    ] = None,
    answer_field: AnswerField = "",
    allow_empty: AllowEmpty = False,
    judge_url: JudgeUrl = "",
    judge_model: JudgeModel = "",
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the judge's replies.")
    ] = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    price: Price = None,
    no_price: NoPrice = False,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    settings: SetJudge = None,
    as_json: AsJson = False,
) -> None:
    """Combine two models' ScienceQA answers: the complement, and with a judge a third answer where they differ.

    [bold]Examples[/bold]

      caldera evaluate ensemble scienceqa --answers llava.json --second gpt4.jsonl --questions llava_test_CQM-A.json

      caldera evaluate ensemble scienceqa --answers llava.json --second gpt4.jsonl --questions problems.json
      --judge-url http://127.0.0.1:8000/v1 --judge-model qwen --out judged/ensemble
    """
    from caldera.errors import UsageError
    from caldera.evaluation.judging.verdicts import check_valid
    from caldera.evaluation.runs.ensemble import EnsembleConfig, evaluate_ensemble
    from caldera.progress import default_progress

    if benchmark != "scienceqa":
        raise UsageError(f"ensembles exist only for scienceqa, not for {benchmark}")
    llm_judge = None
    if judge_url or judge_model:
        llm_judge = _judge_from(
            (judge_url, judge_model, api_key_env),
            price,
            ["temperature=0", "max_tokens=1024", *(settings or ())],
            no_price=no_price,
            max_cost=max_cost,
            max_requests=max_requests,
        )
    sources = sources_from(answer_field, allow_empty, questions, annotations)
    config = EnsembleConfig(sources=sources, first=answers, second=second, out=out_folder)
    metrics = evaluate_ensemble(config, llm_judge, default_progress())
    if as_json:
        typer.echo(json.dumps(metrics, ensure_ascii=False, indent=2))
    else:
        _print_ensemble(metrics)
    check_valid(metrics)


def sources_from(
    answer_field: str,
    allow_empty: bool,
    questions: Path | None,
    annotations: Path | None,
    **others: Any,  # noqa: ANN401 - fields of Sources
) -> "Sources":
    """Return a benchmark's files, and how to read the answers."""
    from caldera.evaluation.answer_files import AnswerOptions
    from caldera.evaluation.benchmark import Sources

    options = AnswerOptions(answer_field=answer_field, allow_empty=allow_empty)
    return Sources(questions=questions, annotations=annotations, answer_options=options, **others)


def _judge_from(
    address: tuple[str, str, str],
    price: str | None,
    settings: list[str],
    **limits: Any,  # noqa: ANN401 - fields of Judge, which checks them
) -> "Judge":
    """Return the judge of the command's options; `address` is URL, model and the key's environment variable."""
    from pydantic import SecretStr

    from caldera.evaluation.judging.judge import Judge
    from caldera.llm_client.budget import parse_price
    from caldera.llm_client.client import RequestConfig
    from caldera.llm_client.openai_client import OPENAI_URL
    from caldera.overrides import apply_overrides

    url, model, api_key_env = address
    key = os.environ.get(api_key_env, "").strip()
    return Judge(
        model=model,
        base_url=url or OPENAI_URL,
        key=SecretStr(key) if key else None,
        request_config=apply_overrides(RequestConfig(max_repairs=0), settings),
        price=parse_price(price) if price else None,
        **limits,
    )


def _context_next_to(questions: Path | None) -> Path | None:
    """Return the official file of image descriptions next to the questions; None if there is none."""
    names = ("context.jsonl", "caps_boxes_coco2014_val_80.jsonl")
    paths = [questions.with_name(name) for name in names] if questions else []
    return next((path for path in paths if path.is_file()), None)


def _print_scores(scores: Mapping[str, Any], folder: Path, as_json: bool) -> None:
    """Print the scores of a judge, and the path of its verdicts."""
    if as_json:
        typer.echo(json.dumps(scores, ensure_ascii=False, indent=2))
    else:
        _print_metrics(scores["metric"], scores["figures"])
        print_result(f"verdicts  {folder / 'verdicts.jsonl'}")


def _print_metrics(title: str, metrics: Mapping[str, Any]) -> None:
    """Print metrics, one per line, with standard deviations and the means of both answers as further columns."""
    from caldera.evaluation.runs.results import flatten

    columns = [name for name in ("std", "reference", "candidate") if name in metrics]
    table = Table("metric", title=title)
    for name in ("value", *columns):
        table.add_column(name, justify="right")
    rows = {name: value for name, value in metrics.items() if name not in columns}
    for name, value in flatten(rows, " / ").items():
        cells = [flatten(metrics[column], " / ").get(name, "") for column in columns]
        table.add_row(name, *map(_format_value, (value, *cells)))
    stdout_console.print(table)


def _format_value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_format_value, value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _print_ensemble(metrics: Mapping[str, Any]) -> None:
    """Print the accuracies of each model and of both together, one row per column of the paper's table."""
    methods = [name for name in ("first", "second", "complement", "judge") if name in metrics]
    rows = [name for name, value in metrics["first"].items() if isinstance(value, float)]
    table = Table("percent right", title="ScienceQA")
    for method in methods:
        table.add_column(method, justify="right")
    for name in rows:
        table.add_row(name, *(f"{metrics[method][name]:.2f}" for method in methods))
    failures = [str(metrics[method]["parse_failures"]) for method in methods]
    table.add_row("without a letter", *failures)
    stdout_console.print(table)
    summary = f"either right {metrics['either_right']:.2f}, the two differ on {metrics['differ']}"
    if "asked" in metrics:
        summary += (
            f"; the judge was asked {metrics['asked']}, {metrics['num_invalid']} without a letter"
        )
    print_result(summary)
