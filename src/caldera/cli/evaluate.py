"""Command group `caldera evaluate`, and the scoring of existing answers."""

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from caldera.cli import evaluate_judge, evaluate_run
from caldera.cli.data import ApiKeyEnv
from caldera.cli.evaluate_run import EvaluateGroup, Model, RunFolder, ServedModel, SetAnswering
from caldera.cli.options import (
    Boxes,
    Captions,
    Device,
    Dtype,
    Images,
    Instances,
    MaxBadFraction,
    Offline,
    print_result,
    runtime_from,
    stderr_console,
    stdout_console,
)

if TYPE_CHECKING:
    from caldera.evaluation.benchmark import BenchmarkSpec, Score

_NUM_EXAMPLES = 3
"""Unparsed answers that are named."""

_LIST_WIDTH, _NAME_WIDTH = 80, 17
"""Columns of the list of benchmarks, and of their names in it."""

app = typer.Typer(
    cls=EvaluateGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Evaluate a model on a benchmark (`caldera evaluate BENCHMARK --model MODEL`), or score existing answers. "
    "`caldera evaluate benchmarks` describes each benchmark and its files.",
)
app.command()(evaluate_run.compare)
app.command()(evaluate_judge.judge)
app.command()(evaluate_judge.ensemble)


@app.command()
def coco(
    model: Model,
    data: Annotated[Path, typer.Option(help="COCO folder to write the questions from.")],
    split: Annotated[str | None, typer.Option(help="COCO split, such as val2017.")] = None,
    images: Images = None,
    captions: Captions = None,
    instances: Instances = None,
    boxes: Boxes = None,
    per_image: Annotated[int, typer.Option(min=1, help="Questions about each single image.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the choice and wording of questions.")] = 0,
    out_folder: RunFolder = None,
    max_bad_fraction: MaxBadFraction = 0.0,
    settings: SetAnswering = None,
    served_model: ServedModel = "",
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
) -> None:
    """Evaluate a model on questions written from a COCO folder, by exact match.

    [bold]Examples[/bold]

      caldera evaluate coco --model runs/demo/model --data runs/demo/scenes/held_out
    """
    from caldera.evaluation.runs.coco_run import CocoQuestions, evaluate_on_coco

    questions = CocoQuestions(
        folder=data,
        split=split,
        images=images,
        captions=captions,
        instances=instances,
        boxes=boxes,
        per_image=per_image,
        seed=seed,
        max_bad_fraction=max_bad_fraction,
    )
    folder = out_folder or evaluate_run.default_run_folder("coco", model)
    results = evaluate_on_coco(
        model,
        questions,
        out=folder,
        runtime=runtime_from(device, dtype),
        **evaluate_run.answer_config_from(settings, served_model, api_key_env),
    )
    evaluate_run.print_run(results, folder)


@app.command()
def benchmarks() -> None:
    """List the benchmarks: purpose, size, chance level, and files."""
    from caldera.evaluation.benchmarks.registry import BENCHMARKS

    for spec in BENCHMARKS.values():
        chance = ", ".join(f"{name} {value:g}" for name, value in spec.chance.items())
        _print_benchmark(
            spec.name,
            spec.measures,
            f"questions: {spec.description}",
            f"chance: {chance or 'none'}; papers quote {spec.primary_metric}",
            f"files in addition to the answers: {spec.required_files}",
        )
    _print_benchmark(
        "coco",
        "facts that annotations settle, asked in words and scored by exact match",
        "questions: written from captions and boxes of your own",
        "chance: none; the report has every kind of question separately",
        "files: --data, a COCO folder",
    )


def _print_benchmark(name: str, *lines: str) -> None:
    """Print lines next to a name, wrapped between words so that addresses stay whole."""
    for line in lines:
        wrapped = textwrap.wrap(
            line,
            _LIST_WIDTH - _NAME_WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for part in wrapped:
            print_result(f"{name:{_NAME_WIDTH}}{part}")
            name = ""
    print_result("")


@app.command()
def score(
    benchmark: Annotated[str, typer.Argument(help="Name, see `caldera evaluate benchmarks`.")],
    answers: Annotated[
        Path,
        typer.Option(
            help="Answer file of LLaVA, VLMEvalKit, lmms-eval or a server, or a folder of them; for judged "
            "benchmarks the verdicts."
        ),
    ],
    questions: Annotated[Path | None, typer.Option(help="Official question file.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Official file of correct answers.")
    ] = None,
    prompt_layout: Annotated[str, typer.Option(help="Layout of the prompts, such as LEPA.")] = "",
    answer_field: evaluate_judge.AnswerField = "",
    allow_empty: evaluate_judge.AllowEmpty = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score existing answers as the benchmark's authors do.

    [bold]Examples[/bold]

      caldera evaluate score pope --answers answers.jsonl --questions llava_pope_test.jsonl --annotations labels/

      caldera evaluate score scienceqa --answers outputs.json --annotations test_answers.csv --json

      caldera evaluate score llava-bench --answers reviews/
    """
    from caldera.evaluation.benchmarks.registry import get_benchmark
    from caldera.evaluation.judging.verdicts import check_valid

    spec = get_benchmark(benchmark)
    sources = evaluate_judge.sources_from(
        answer_field, allow_empty, questions, annotations, prompt_layout=prompt_layout
    )
    result = spec.score_answer_files(sources, answers)
    if as_json:
        interval = accuracy_interval(result)
        metrics = result.metrics | ({"accuracy_interval_95": interval} if interval else {})
        typer.echo(json.dumps(metrics, ensure_ascii=False, indent=2))
    else:
        print_score(spec, result)
    check_valid(result.metrics)


def print_score(spec: "BenchmarkSpec", score: "Score") -> None:
    """Print the metrics of a score with chance levels, and examples of unparsed answers."""
    from caldera.evaluation.files import join_names
    from caldera.evaluation.runs.results import flatten

    def format_value(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"
        if isinstance(value, list):
            if value and isinstance(value[0], str):  # ids, possibly of all questions
                return f"{len(value)}: {join_names(value)}"
            return ", ".join(map(str, value)) or "none"
        return str(value)

    table = Table("metric", title=spec.title)
    for column in ("value", "95 %", "chance"):
        table.add_column(column, justify="right")
    for name, value in flatten(score.metrics, " / ").items():
        interval = accuracy_interval(score) if name == "accuracy" else []
        table.add_row(
            name,
            format_value(value),
            " to ".join(f"{end:.2f}" for end in interval),
            f"{spec.chance[name]:g}" if name in spec.chance else "",
            style="bold" if name == spec.primary_metric else "",
        )
    stdout_console.print(table)
    if score.unparsed:
        examples = ", ".join(list(score.unparsed)[:_NUM_EXAMPLES])
        total = len({*score.item_scores, *score.unparsed})
        stderr_console.print(
            f"{len(score.unparsed)} of {total} answers could not be parsed, the first: {examples}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def accuracy_interval(score: "Score") -> list[float]:
    """Return the ends of the 95 % interval of `accuracy`; empty if that is not the mean score."""
    from caldera.evaluation.benchmark import mean
    from caldera.evaluation.intervals import mean_interval

    scores = list(score.item_scores.values())
    accuracy: Any = score.metrics.get("accuracy")
    if not scores or accuracy is None or abs(100 * mean(scores) - accuracy) > 1e-4:
        return []
    interval = mean_interval(scores)
    return [round(100 * interval.low, 2), round(100 * interval.high, 2)]
