"""Evaluate group, score."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from caldera.cli import evaluate_judge, evaluate_run
from caldera.cli.evaluate_run import (
    BenchmarkGroup,
    ApiKeyEnv,
    Model,
    RunFolder,
    Served,
    SetAsking,
)
from caldera.cli.options import (
    Device,
    Dtype,
    MaxBadFraction,
    runtime_from,
    stderr_console,
    stdout_console,
)
from caldera.evaluation.benchmark import BenchmarkSpec, Score, mean
from caldera.evaluation.files import join_names
from caldera.evaluation.intervals import mean_interval

_SHOWN = 3
"""Unread answers that are named."""


def print_score(task: BenchmarkSpec, score: Score) -> None:
    """Show the figures of a score, what guessing gives beside them, and what could not be read."""
    table = Table("metric", title=task.title)
    table.add_column("value", justify="right")
    table.add_column("95 %", justify="right")
    table.add_column("p_value", justify="right")
    for name, value in _flat(score.metrics):
        chance = f"{task.chance[name]:g}" if name in task.chance else ""
        interval = accuracy_interval(score) if name == "accuracy" else []
        table.add_row(
            name,
            _written(value),
            " to ".join(f"{end:.2f}" for end in interval),
            chance,
            style="bold" if name == task.primary_metric else "",
        )
    stdout_console.print(table)
    if score.unparsed:
        first = ", ".join(list(score.unparsed)[:_SHOWN])
        total = len({*score.item_scores, *score.unparsed})
        stderr_console.print(
            f"{len(score.unparsed)} of {total} answers could not be read, the first: {first}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def accuracy_interval(score: Score) -> list[float]:
    """Return the two ends of the 95 % interval of `accuracy`, or nothing where that is not the mean of all marks."""
    marks = list(score.item_scores.values())
    accuracy = score.metrics.get("accuracy")
    if not marks or accuracy is None or abs(100 * mean(marks) - accuracy) > 1e-4:
        return []
    interval = mean_interval(marks)
    return [round(100 * interval.low, 2), round(100 * interval.high, 2)]


def _flat(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield figures with those inside others under both names."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} / ")
        else:
            yield f"{before}{name}", value


def _written(value: object) -> str:
    """Write whole numbers as they are, shares below one with four places, others with two."""
    if isinstance(value, float):
        return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, list):
        if value and isinstance(value[0], str):  # ids, which may be as many as the questions
            return f"{len(value)}: {join_names(value)}"
        return ", ".join(map(str, value)) or "none"
    return str(value)


app = typer.Typer(
    cls=BenchmarkGroup,
    no_args_is_help=True,
    help="Ask a model the questions of a task (`caldera evaluate TASK --model MODEL`), or score answers. Tasks: "
    "scienceqa, pope, mme, mmbench, mmbench_cn, seed, mmmu, nlvr, vqav2, gqa, textvqa, vizwiz, captions, own, "
    "llava-bench, llava-bench-coco, mm-vet; `caldera evaluate tasks` tells what each measures and needs.",
)
app.command(hidden=True)(evaluate_run.run)
app.command()(evaluate_run.compare)
app.command()(evaluate_judge.judge)
app.command()(evaluate_judge.ensemble)


@app.command()
def coco(
    model: Model,
    data: Annotated[Path, typer.Option(help="COCO folder to write the questions from.")],
    split: Annotated[str | None, typer.Option(help="COCO split, such as val2017.")] = None,
    per_image: Annotated[int, typer.Option(min=1, help="Questions about each image alone.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice and wording of questions.")] = 0,
    out_folder: RunFolder = None,
    max_bad_fraction: MaxBadFraction = 0.0,
    settings: SetAsking = None,
    served_model: Served = "",
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Ask a model questions that annotations answer, and score it by exact match.

    [bold]Examples[/bold]

      caldera evaluate coco --model runs/demo/model --data runs/demo/scenes/held_out
    """
    from caldera.evaluation.runs.coco_run import CocoQuestions, evaluate_on_coco

    questions = CocoQuestions(
        folder=data, split=split, per_image=per_image, seed=seed, max_bad=max_bad_fraction
    )
    folder = out_folder or evaluate_run.default_run_folder("coco", model)
    results = evaluate_on_coco(
        model,
        questions,
        out=folder,
        means=runtime_from(device, dtype),
        **evaluate_run.answer_config_from(settings, served_model, api_key_env),
    )
    evaluate_run.print_run(results, folder)


@app.command()
def tasks() -> None:
    """List the benchmarks: what each measures, its size, what guessing gives, and which files it takes."""
    from caldera.evaluation.benchmarks.registry import BENCHMARKS

    table = Table(
        "task", "what it measures, its questions, chance, headline, files", show_lines=True
    )
    for task in BENCHMARKS.values():
        chance = ", ".join(f"{name} {value:g}" for name, value in task.chance.items())
        table.add_row(
            f"[bold]{task.name}[/bold]",
            f"{task.measures}\nquestions: {task.description}\nchance: {chance or 'none'}; papers quote {task.primary_metric}\n"
            f"files beside the answers: {task.required_files}",
        )
    stdout_console.print(table)


@app.command()
def score(
    task: Annotated[str, typer.Argument(help="Name, as `caldera evaluate tasks` lists it.")],
    answers: Annotated[
        Path,
        typer.Option(
            help="Answer file, official or LLaVA's, or a folder of them; of judged tasks the verdicts."
        ),
    ],
    questions: Annotated[Path | None, typer.Option(help="Official file of questions.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Official file of right answers.")
    ] = None,
    prompt_layout: Annotated[str, typer.Option(help="How questions were put, such as LEPA.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score answers that are there already, as the benchmark's authors score them.

    [bold]Examples[/bold]

      caldera evaluate score pope --answers answers.jsonl --questions llava_pope_test.jsonl --truth labels/

      caldera evaluate score scienceqa --answers outputs.json --truth test_answers.csv --json

      caldera evaluate score llava-bench --answers reviews/
    """
    from caldera.cli.evaluate import accuracy_interval, print_score
    from caldera.evaluation.benchmark import Sources
    from caldera.evaluation.benchmarks.registry import get_benchmark
    from caldera.evaluation.judging.verdicts import check_valid

    found = get_benchmark(task)
    result = found.score_answer_files(
        Sources(questions=questions, annotations=annotations, prompt_layout=prompt_layout), answers
    )
    if as_json:
        interval = accuracy_interval(result)
        figures = result.metrics | ({"accuracy_interval_95": interval} if interval else {})
        typer.echo(json.dumps(figures, ensure_ascii=False, indent=2))
    else:
        print_score(found, result)
    check_valid(result.metrics)
