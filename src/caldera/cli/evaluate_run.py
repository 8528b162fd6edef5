"""Commands `caldera evaluate BENCHMARK`, one for each registered benchmark, and `caldera evaluate compare`."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperCommand

from caldera.cli.data import ApiKeyEnv
from caldera.cli.interruptions import StoppableGroup
from caldera.cli.options import (
    Device,
    Dtype,
    Offline,
    check_out_file,
    print_result,
    raise_if_renamed_command,
    runtime_from,
    stdout_console,
)
from caldera.errors import EvaluationError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from caldera.evaluation.benchmark import BenchmarkSpec
    from caldera.evaluation.runs.results import Results

MODEL_HELP = """
Model folder, a name on the Hugging Face Hub, or the URL of a server that speaks OpenAI's chat completions, such as
http://127.0.0.1:8000/v1.
"""
SET_HELP = """
Setting for answering: temperature, top_p, seed, max_new_tokens, batch_size, choice_method (generation, letter, option,
option-mean); for a server also concurrency, requests_per_minute, timeout, retries. Repeatable.
"""

Model = Annotated[str, typer.Option(help=MODEL_HELP)]
ServedModel = Annotated[
    str, typer.Option(metavar="NAME", help="Name of the model at a server with several.")
]
SetAnswering = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=SET_HELP)
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Run folder. \\[default: runs/evaluate/BENCHMARK/MODEL]"),
]


class EvaluateGroup(StoppableGroup):
    """Group `evaluate`, with a command for each registered benchmark.

    The registry is imported only when the group is used, so that `caldera --help` stays fast.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - signature of the base class
        """Return the names of all commands, benchmarks first."""
        from caldera.evaluation.benchmarks.registry import BENCHMARKS

        return [*BENCHMARKS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - signature of the base class
        """Return a command by name; None if there is none."""
        from caldera.evaluation.benchmarks.registry import BENCHMARKS

        if cmd_name in BENCHMARKS:
            return benchmark_command(BENCHMARKS[cmd_name])
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - signature of the base class
        """Return the command of the first argument.

        Raises:
            UsageError: The command was renamed.
            UnknownNameError: There is no such command.
        """
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise_if_renamed_command(ctx.info_name, name)
            raise UnknownNameError("benchmark or command", name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def benchmark_command(spec: "BenchmarkSpec") -> Any:  # noqa: ANN401 - Typer does not export click's Command
    """Return the command that evaluates a benchmark."""

    class BenchmarkCommand(TyperCommand):
        """Command that names the one for existing answers."""

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - as the base class
            """Parse the words after the command; raise UsageError for --answers."""
            if any(word.partition("=")[0] == "--answers" for word in args):
                scorer = "judge" if spec.judging else "score"
                raise UsageError(
                    f"caldera evaluate {spec.name} asks a model and has no --answers; for existing answers use: "
                    f"caldera evaluate {scorer} {spec.name} --answers FILE"
                )
            return super().parse_args(ctx, args)

    app = typer.Typer(rich_markup_mode="rich", add_completion=False)
    app.command(
        spec.name,
        cls=BenchmarkCommand,
        help=_help(spec),
        short_help=spec.measures,
        rich_help_panel="Benchmarks",
    )(_evaluate(spec))
    return typer.main.get_command(app)


def _help(spec: "BenchmarkSpec") -> str:
    """Return a benchmark's description, its files, and examples."""
    chance = ", ".join(f"{name} {value:g}" for name, value in spec.chance.items())
    files = [
        f"--{option} {path}"
        for option in ("questions", "annotations", "images")
        if (path := getattr(spec.default_files, option))
    ]
    paragraphs = (
        f"Evaluate a model on {spec.title}: {spec.measures}.",
        f"Questions: {spec.description}",
        f"Chance: {chance or 'none'}; papers quote {spec.primary_metric}",
        f"Files: {spec.required_files}",
        f"Files below --data FOLDER: {'  '.join(files)}" if files else "",
        "[bold]Examples[/bold]",
        f"  caldera evaluate {spec.name} --model runs/finetune/model --data FOLDER",
        f"  caldera evaluate {spec.name} --model http://127.0.0.1:8000/v1 --data FOLDER --limit 100",
    )
    return "\n\n".join(filter(None, paragraphs))


def _evaluate(spec: "BenchmarkSpec") -> Callable[..., None]:
    """Return the function of a benchmark's command."""

    def evaluate(
        model: Model,
        data: Annotated[
            Path | None, typer.Option(help="Folder of the official files, under their own names.")
        ] = None,
        questions: Annotated[Path | None, typer.Option(help="Official question file.")] = None,
        annotations: Annotated[
            Path | None, typer.Option(help="Official file of correct answers.")
        ] = None,
        images: Annotated[
            Path | None, typer.Option(help="Folder of images. \\[default: that of the questions]")
        ] = None,
        prompt_layout: Annotated[
            str, typer.Option(help="Layout of the prompt, if the benchmark has several.")
        ] = "",
        limit: Annotated[
            int | None,
            typer.Option(min=1, help="Maximum number of questions; groups are not split."),
        ] = None,
        out_folder: RunFolder = None,
        settings: SetAnswering = None,
        served_model: ServedModel = "",
        api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
        device: Device = "auto",
        dtype: Dtype = "auto",
        offline: Offline = False,
    ) -> None:
        from caldera.evaluation.benchmark import Sources
        from caldera.evaluation.runs.run import (
            EvaluationConfig,
            evaluate_benchmark,
            find_default_files,
        )

        sources = Sources(
            questions=questions, annotations=annotations, images=images, prompt_layout=prompt_layout
        )
        if data is not None:
            sources = find_default_files(data, spec, sources)
        folder = out_folder or default_run_folder(spec.name, model)
        results = evaluate_benchmark(
            EvaluationConfig(spec=spec, sources=sources, limit=limit),
            model,
            out=folder,
            runtime=runtime_from(device, dtype),
            **answer_config_from(settings, served_model, api_key_env),
        )
        if results is None:
            _print_answers(spec, folder / "answers.jsonl")
        else:
            print_run(results, folder)

    return evaluate


def _print_answers(spec: "BenchmarkSpec", answers: Path) -> None:
    """Print the path of a run's answers without scores, and the command that scores them."""
    scorer = "judge" if spec.judging else "score"
    print_result(
        f"answers  {answers}",
        f"next: caldera evaluate {scorer} {spec.name} --answers {answers} ...",
    )
    if scorer == "score":
        print_result(
            "the files have no correct answers; give them as --annotations, or submit the answers to the benchmark's "
            "server"
        )


def answer_config_from(
    settings: list[str] | None, served_model: str, api_key_env: str
) -> dict[str, Any]:
    """Return `config` and `server` for an answerer; the key is read from the environment here.

    Raises:
        UsageError: A setting is invalid.
    """
    from pydantic import SecretStr

    from caldera.evaluation.answerers.answerer import AnswerConfig
    from caldera.evaluation.answerers.remote_server import ServerAddress
    from caldera.overrides import apply_overrides

    key = os.environ.get(api_key_env, "").strip()
    return {
        "config": apply_overrides(AnswerConfig(), settings or ()),
        "server": ServerAddress(url="", model=served_model, key=SecretStr(key) if key else None),
    }


def default_run_folder(benchmark: str, model: str) -> Path:
    """Return the run folder of a benchmark and a model."""
    name = re.sub(r"[^\w.-]+", "-", re.sub(r"^https?://", "", model)).strip("-.")
    return Path("runs/evaluate") / benchmark / (name or "model")


def print_run(results: "Results", folder: Path) -> None:
    """Print the results of a run and the paths of its files.

    Raises:
        EvaluationError: Too many items failed.
    """
    headline, counts = results["headline"], results["counts"]
    table = Table("items", "n", "score", "95 % interval", title=results["title"])
    table.add_row("overall", *_format_cells(results["overall"]), end_section=True)
    for name, group in (*results["kinds"].items(), *results["slices"].items()):
        table.add_row(name, *_format_cells(group))
    stdout_console.print(table)
    chance = "" if headline["chance"] is None else f" (chance {headline['chance']:g})"
    interval = ""
    if headline["low"] is not None:
        interval = f", 95 % {headline['low']:.2f} to {headline['high']:.2f} ({headline['method']})"
    excluded = counts["left_out"]
    excluded_note = f"; {excluded} more excluded because their group is incomplete"
    print_result(
        f"{headline['figure']} {headline['value']:.2f}{chance}{interval}",
        f"answered {counts['answered']} of {counts['items']}, failed {counts['failed']}, unparsed "
        f"{counts['unparsed']}{excluded_note if excluded else ''}",
        f"report   {folder / 'report.html'}",
        f"results  {folder / 'results.json'}",
        f"answers  {folder / 'answers.jsonl'}",
    )
    if not results["valid"]:
        item_id, error = next(iter(results["failed"].items()))
        raise EvaluationError(
            f"{counts['failed']} of {counts['items']} items failed, over 1 %, so the run is not valid; the first, "
            f"{item_id}: {error}; fix the cause, and the same command asks only the failed items again"
        )


def _format_cells(group: dict[str, Any]) -> list[str]:
    """Return the count, the value and the interval of a group as text."""
    value, low = group["value"], group["low"]
    return [
        "" if group["n"] is None else str(group["n"]),
        "" if value is None else f"{value:.3f}",
        "" if low is None else f"{low:.3f} to {group['high']:.3f}",
    ]


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Run folders; the first is the baseline.")],
    out_file: Annotated[
        Path, typer.Option("--out", callback=check_out_file, help="The report.")
    ] = Path("comparison.html"),
) -> None:
    """Compare runs on the same items: differences with intervals, and answers side by side.

    [bold]Examples[/bold]

      caldera evaluate compare runs/evaluate/pope/before runs/evaluate/pope/after --out comparison.html
    """
    from caldera.evaluation.runs.report import compare_runs, read_run, write_run_report

    if len(folders) < 2:
        raise UsageError("a comparison needs at least two runs; give their folders")
    runs = [read_run(folder) for folder in folders]
    columns = ("run", "difference", "95 % interval", "better", "worse", "p")
    table = Table(*columns, title=f"against {folders[0]}")
    for comparison in compare_runs(runs):
        total = comparison.all
        table.add_row(
            comparison.name,
            f"{total.value:+.3f}",
            f"{total.low:+.3f} to {total.high:+.3f}",
            str(total.wins),
            str(total.losses),
            f"{total.p_value:.3f}",
        )
    write_run_report(out_file, runs)
    stdout_console.print(table)
    print_result(f"report   {out_file}")
