"""`caldera evaluate judge` and `caldera evaluate ensemble`: a language model reads answers that are there already."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from caldera.cli.data import ApiKeyEnv, MaxCost, MaxRequests, NoPrice, Price
from caldera.cli.options import stdout_console

Questions = Annotated[Path | None, typer.Option(help="Official file of questions.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JudgeUrl = Annotated[
    str,
    typer.Option(
        help="Address of the judge: OpenAI, vLLM, llama.cpp, Ollama, caldera ... \\[default: OpenAI]"
    ),
]
JudgeModel = Annotated[str, typer.Option(help="Name of the judge's model.")]
SetJudge = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="How the judge is asked: temperature, max_tokens, seed, repairs, concurrency, requests_per_minute, "
        "timeout, retries ...; many times.",
    ),
]


Truth = Annotated[
    Path | None,
    typer.Option(
        help="Reference answers, such as answers_gpt4.jsonl; mm-vet and own have theirs in the questions."
    ),
]
Context = Annotated[
    Path | None,
    typer.Option(
        help="What is in the images. \\[default: context.jsonl or caps_boxes_coco2014_val_80.jsonl, beside the "
        "questions]"
    ),
]
Protocol = Annotated[
    str, typer.Option(help="paper: the reference first; both_orders: each answer twice.")
]
Runs = Annotated[int, typer.Option(min=1, help="How often each answer is judged.")]


def judge(
    task: Annotated[str, typer.Argument(help="llava-bench, llava-bench-coco, mm-vet or own.")],
    answers: Annotated[Path, typer.Option(help="Answer file, official or LLaVA's.")],
    questions: Questions = None,
    annotations: Truth = None,
    context: Context = None,
    judge_url: JudgeUrl = "",
    judge_model: JudgeModel = "",
    protocol: Protocol = "paper",
    runs: Runs = 1,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for verdicts.")] = Path(
        "judged"
    ),
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    price: Price = None,
    no_price: NoPrice = False,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    settings: SetJudge = None,
    as_json: AsJson = False,
) -> None:
    """Have a language model judge open answers, and score its verdicts. Started again, it goes on.

    Verdicts that cannot be read are left out and counted; over one percent and the run is not valid (exit code 6).

    [bold]Examples[/bold]

      caldera evaluate judge mm-vet --answers a.json --questions mm-vet.json --judge-model gpt-4o --price 2.5,10

      caldera evaluate judge llava-bench --answers a.jsonl --questions questions.jsonl --annotations answers_gpt4.jsonl
      --protocol both_orders --judge-url http://127.0.0.1:8000/v1 --judge-model qwen --out judged/one
    """
    from caldera.evaluation.benchmark import Sources
    from caldera.evaluation.benchmarks.registry import get_benchmark
    from caldera.evaluation.judging.verdicts import check_valid
    from caldera.evaluation.runs.judge_run import JudgeRunConfig, find_protocol, judge_answers
    from caldera.progress import default_progress

    found = get_benchmark(task)
    usual = find_protocol(found, protocol)
    asked = _judge(
        (judge_url, judge_model, api_key_env),
        price,
        [f"temperature={usual.temperature}", f"max_tokens={usual.max_tokens}", *(settings or ())],
        no_price=no_price,
        max_cost=max_cost,
        max_requests=max_requests,
    )
    files = Sources(
        questions=questions, annotations=annotations, captions=context or _context_beside(questions)
    )
    order = JudgeRunConfig(
        task=found, sources=files, answers=answers, protocol=protocol, runs=runs, out=out_folder
    )
    scores = judge_answers(order, asked, default_progress())
    if as_json:
        typer.echo(json.dumps(scores, ensure_ascii=False, indent=2))
    else:
        _show(scores["metric"], scores["figures"])
        stdout_console.print(
            f"verdicts  {out_folder / 'verdicts.jsonl'}", markup=False, soft_wrap=True
        )
    check_valid(scores["figures"])


def ensemble(
    task: Annotated[str, typer.Argument(help="scienceqa.")],
    answers: Annotated[Path, typer.Option(help="Answers of the model that sees the images.")],
    second: Annotated[Path, typer.Option(help="Answers of the second model.")],
    questions: Questions = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Official file of right answers, for the table's columns.")
    ] = None,
    judge_url: JudgeUrl = "",
    judge_model: JudgeModel = "",
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for what the judge says.")
    ] = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    price: Price = None,
    no_price: NoPrice = False,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    settings: SetJudge = None,
    as_json: AsJson = False,
) -> None:
    """Put two models' ScienceQA answers together: the complement, and with a judge one more opinion where they differ.

    [bold]Examples[/bold]

      caldera evaluate ensemble scienceqa --answers llava.json --second gpt4.jsonl --questions llava_test_CQM-A.json

      caldera evaluate ensemble scienceqa --answers llava.json --second gpt4.jsonl --questions problems.json
      --judge-url http://127.0.0.1:8000/v1 --judge-model qwen --out judged/ensemble
    """
    from caldera.errors import UsageError
    from caldera.evaluation.benchmark import Sources
    from caldera.evaluation.judging.verdicts import check_valid
    from caldera.evaluation.runs.ensemble import EnsembleConfig, evaluate_ensemble
    from caldera.progress import default_progress

    if task != "scienceqa":
        raise UsageError(f"there are ensembles for scienceqa alone, not {task}")
    asked = None
    if judge_url or judge_model:
        asked = _judge(
            (judge_url, judge_model, api_key_env),
            price,
            ["temperature=0", "max_tokens=1024", *(settings or ())],
            no_price=no_price,
            max_cost=max_cost,
            max_requests=max_requests,
        )
    sources = Sources(questions=questions, annotations=annotations)
    order = EnsembleConfig(sources=sources, first=answers, second=second, out=out_folder)
    figures = evaluate_ensemble(order, asked, default_progress())
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False, indent=2))
    else:
        _show_ensemble(figures)
    check_valid(figures)


def _judge(
    reached: tuple[str, str, str],
    price: str | None,
    settings: list[str],
    **limits: Any,  # noqa: ANN401 - fields of Judge, which checks them
) -> Any:  # noqa: ANN401 - its type is heavy to import
    """Return the judge that options name: address, model, and the variable that holds the key, which is read here.

    Raises:
        UsageError: A setting, the price or the model cannot be.
    """
    from pydantic import SecretStr

    from caldera.evaluation.judging.judge import Judge
    from caldera.llm_client.budget import parse_price
    from caldera.llm_client.client import RequestConfig
    from caldera.llm_client.openai_client import OPENAI_URL
    from caldera.overrides import apply_overrides

    url, model, key_variable = reached
    key = os.environ.get(key_variable, "").strip()
    return Judge(
        model=model,
        base_url=url or OPENAI_URL,
        key=SecretStr(key) if key else None,
        request_config=apply_overrides(RequestConfig(max_repairs=0), settings),
        price=parse_price(price) if price else None,
        **limits,
    )


def _context_beside(questions: Path | None) -> Path | None:
    """Return the official file of contexts that lies beside the questions, None where there is none."""
    names = ("context.jsonl", "caps_boxes_coco2014_val_80.jsonl")
    places = [questions.with_name(name) for name in names] if questions else []
    return next((place for place in places if place.is_file()), None)


def _show(title: str, figures: Mapping[str, Any]) -> None:
    """Print figures, one a line; means of the answers and references, and spreads, stand in columns beside them."""
    beside = [name for name in ("std", "reference", "candidate") if name in figures]
    table = Table("figure", title=title)
    for name in ("value", *beside):
        table.add_column(name, justify="right")
    for name, value in _flat(
        {name: value for name, value in figures.items() if name not in beside}
    ):
        columns = [dict(_flat(figures[column])).get(name, "") for column in beside]
        table.add_row(name, _written(value), *map(_written, columns))
    stdout_console.print(table)


def _flat(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield figures, those in groups by both names."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} / ")
        else:
            yield f"{before}{name}", value


def _written(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _show_ensemble(figures: Mapping[str, Any]) -> None:
    """Print the accuracy of each model and of both together, a line for each column of the paper's table."""
    ways = [name for name in ("first", "second", "complement", "judge") if name in figures]
    columns = [name for name, value in figures["first"].items() if isinstance(value, float)]
    table = Table("percent right", title="ScienceQA")
    for way in ways:
        table.add_column(way, justify="right")
    for name in columns:
        table.add_row(name, *(f"{figures[way][name]:.2f}" for way in ways))
    unread = [str(figures[way]["parse_failures"]) for way in ways]
    table.add_row("without a letter", *unread)
    stdout_console.print(table)
    told = f"either right {figures['either_right']:.2f}, the two differ on {figures['differ']}"
    if "asked" in figures:
        told += (
            f"; the judge was asked {figures['asked']}, {figures['num_invalid']} without a letter"
        )
    stdout_console.print(told, highlight=False, soft_wrap=True)
