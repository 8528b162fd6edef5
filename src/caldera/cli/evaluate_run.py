"""`caldera evaluate TASK ...`: any task by its name, and the comparison of runs."""

import copy
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from caldera.cli.options import (
    Device,
    Dtype,
    raise_if_renamed_command,
    runtime_from,
    stdout_console,
)
from caldera.errors import EvaluationError, UnknownNameError, UsageError

Model = Annotated[
    str,
    typer.Option(
        help="Model folder, or the address of a server that speaks OpenAI's chat completions, such as "
        "http://127.0.0.1:8000/v1."
    ),
]
Served = Annotated[str, typer.Option(metavar="NAME", help="The model, where a server has several.")]
ApiKeyEnv = Annotated[
    str,
    typer.Option(metavar="NAME", help="Environment variable with a server's key."),
]
SetAsking = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="How items are asked: temperature, top_p, seed, max_new_tokens, batch_size, choose_by (generation, "
        "letter, option, option-mean); of a server concurrency, requests_per_minute, timeout, retries; many times.",
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--out", help="The run's folder. \\[default: runs/evaluate/TASK/MODEL]"),
]


class BenchmarkGroup(TyperGroup):
    """A group whose commands are joined by the name of every task."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - as its base has it
        """Take a word that is no command for a task.

        Raises:
            UnknownNameError: It is neither.
        """
        name = args[0]
        raise_if_renamed_command(ctx.info_name, name)
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        from caldera.evaluation.benchmarks.registry import BENCHMARKS

        if name not in BENCHMARKS:
            shown = [each for each, command in self.commands.items() if not command.hidden]
            raise UnknownNameError("task or command", name, [*BENCHMARKS, *shown])
        command = copy.copy(self.commands["run"])
        command.help = _help(BENCHMARKS[name])
        return name, command, ["--task", *args]


def _help(task: Any) -> str:  # noqa: ANN401 - its type is heavy to import
    """Say what a task is, and how it is called."""
    chance = ", ".join(f"{name} {value:g}" for name, value in task.chance.items())
    names = [
        f"--{each} {path}"
        for each in ("questions", "annotations", "images")
        if (path := getattr(task.layout, each))
    ]
    return "\n\n".join(
        line
        for line in (
            f"Ask a model the questions of {task.title}: {task.measures}.",
            f"Questions: {task.size}",
            f"Chance: {chance or 'none'}; papers quote {task.headline}",
            f"Files: {task.files}",
            f"Files below --data FOLDER: {'  '.join(names)}" if names else "",
            "[bold]Examples[/bold]",
            f"  caldera evaluate {task.name} --model runs/finetune/model --data FOLDER",
            f"  caldera evaluate {task.name} --model http://127.0.0.1:8000/v1 --data FOLDER --limit 100",
        )
        if line
    )


def run(
    task: Annotated[str, typer.Option(hidden=True)],
    model: Model,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the official files under their official names.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="Official file of questions.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Official file of right answers.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images. \\[default: that of the questions]")
    ] = None,
    prompt_layout: Annotated[
        str, typer.Option(help="How questions are put, where there are ways.")
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Ask only the first questions; what is scored together is not cut apart."
        ),
    ] = None,
    out_folder: RunFolder = None,
    settings: SetAsking = None,
    served_model: Served = "",
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Ask a model the questions of a task."""
    from caldera.evaluation.benchmark import Sources
    from caldera.evaluation.benchmarks.registry import get_benchmark
    from caldera.evaluation.runs.run import EvaluationConfig, evaluate_task, find_default_files

    found = get_benchmark(task)
    sources = Sources(
        questions=questions, annotations=annotations, images=images, prompt_layout=prompt_layout
    )
    if data is not None:
        sources = find_default_files(data, found, sources)
    folder = out_folder or default_run_folder(task, model)
    results = evaluate_task(
        EvaluationConfig(task=found, sources=sources, limit=limit),
        model,
        out=folder,
        means=runtime_from(device, dtype),
        **answer_config_from(settings, served_model, api_key_env),
    )
    if results is None:
        answers = folder / "answers.jsonl"
        told = f"answers  {answers}\nnext: caldera evaluate judge {task} --answers {answers} ..."
        stdout_console.print(told, markup=False, highlight=False, soft_wrap=True)
    else:
        print_run(results, folder)


def answer_config_from(
    settings: list[str] | None, served: str, key_variable: str
) -> dict[str, Any]:
    """Return how items are asked, and of which model of a server; the key is read here.

    Raises:
        UsageError: A setting cannot be.
    """
    from pydantic import SecretStr

    from caldera.evaluation.answerers.answerer import AnswerConfig
    from caldera.evaluation.answerers.remote_server import ServerAddress
    from caldera.overrides import apply_overrides

    key = os.environ.get(key_variable, "").strip()
    return {
        "asking": apply_overrides(AnswerConfig(), settings or ()),
        "server": ServerAddress(url="", model=served, key=SecretStr(key) if key else None),
    }


def default_run_folder(task: str, model: str) -> Path:
    """Name the folder of a run after its task and model."""
    name = re.sub(r"[^\w.-]+", "-", re.sub(r"^https?://", "", model)).strip("-.")
    return Path("runs/evaluate") / task / (name or "model")


def print_run(results: dict[str, Any], folder: Path) -> None:
    """Print what a run came to and where everything is.

    Raises:
        EvaluationError: Too many items failed.
    """
    headline, counts = results["primary_metric"], results["counts"]
    table = Table("items", "n", "score", "95 % interval", title=results["title"])
    groups = [
        ("overall", results["overall"]),
        *results["kinds"].items(),
        *results["slices"].items(),
    ]
    for name, group in groups:
        table.add_row(name, *_cells(group), end_section=name == "overall")
    stdout_console.print(table)
    chance = "" if headline["chance"] is None else f" (chance {headline['chance']:g})"
    sure = ""
    if headline["low"] is not None:
        sure = f", 95 % {headline['low']:.2f} to {headline['high']:.2f} ({headline['method']})"
    left_out = counts["left_out"]
    beside = f"; with them {left_out} left out, as scored together" if left_out else ""
    lines = [
        f"{headline['figure']} {headline['value']:.2f}{chance}{sure}",
        f"answered {counts['answered']} of {counts['items']}, failed {counts['failed']}, unread {counts['unread']}"
        f"{beside}",
        f"report   {folder / 'report.html'}",
        f"results  {folder / 'results.json'}",
        f"answers  {folder / 'answers.jsonl'}",
    ]
    for line in lines:
        stdout_console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not results["valid"]:
        first = next(iter(results["failed"].items()))
        raise EvaluationError(
            f"{counts['failed']} of {counts['items']} items failed, over 1 %, so the run is not valid; the first, "
            f"{first[0]}: {first[1]}; mend it, and the same command asks only those again"
        )


def _cells(group: dict[str, Any]) -> list[str]:
    """Write a number and how sure it is."""
    value, low = group["value"], group["low"]
    return [
        "" if group["n"] is None else str(group["n"]),
        "" if value is None else f"{value:.3f}",
        "" if low is None else f"{low:.3f} to {group['high']:.3f}",
    ]


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs; the first is the basis.")],
    out_file: Annotated[Path, typer.Option("--out", help="The report.")] = Path("comparison.html"),
) -> None:
    """Compare runs that answered the same items: differences with intervals, and answers side by side.

    [bold]Examples[/bold]

      caldera evaluate compare runs/evaluate/pope/before runs/evaluate/pope/after --out comparison.html
    """
    from caldera.evaluation.runs.report import compare_runs, read_run, write_run_report

    if len(folders) < 2:
        raise UsageError("a comparison needs two runs or more; name their folders")
    runs = [read_run(folder) for folder in folders]
    table = Table(
        "run", "difference", "95 % interval", "better", "worse", "p", title=f"against {folders[0]}"
    )
    for one in compare_runs(runs):
        total = one.all
        table.add_row(
            one.name, f"{total.value:+.3f}", f"{total.low:+.3f} to {total.high:+.3f}", str(total.wins),
            str(total.losses), f"{total.p_value:.3f}",
        )  # fmt: skip
    write_run_report(out_file, runs)
    stdout_console.print(table)
    stdout_console.print(f"report   {out_file}", markup=False, highlight=False, soft_wrap=True)
