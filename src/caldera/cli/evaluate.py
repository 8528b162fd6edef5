"""`caldera evaluate ...`: ask a model the questions of a task, or score answers that are there already."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from caldera.cli import evaluate_judge
from caldera.cli.options import Device, Dtype, MaxBad, means_from, out

app = typer.Typer(
    no_args_is_help=True, help="Ask a model the questions of a task, or score answers."
)
app.command()(evaluate_judge.judge)
app.command()(evaluate_judge.ensemble)


@app.command()
def coco(
    model: Annotated[Path, typer.Option(help="Model folder.")],
    data: Annotated[Path, typer.Option(help="COCO folder to write the questions from.")],
    split: Annotated[str | None, typer.Option(help="COCO split, such as val2017.")] = None,
    per_picture: Annotated[
        int, typer.Option(min=1, help="Questions about each picture alone.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice and wording of questions.")] = 0,
    out_file: Annotated[Path | None, typer.Option("--out", help="JSON with all answers.")] = None,
    max_bad: MaxBad = 0.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Ask a model questions that annotations answer, and score it by exact match.

    [bold]Examples[/bold]

      caldera evaluate coco --model runs/demo/model --data runs/demo/scenes/held_out
    """
    from caldera.recipes.from_files import CocoQuestions, evaluate_on_coco

    questions = CocoQuestions(
        folder=data, split=split, per_picture=per_picture, seed=seed, max_bad=max_bad
    )
    means = means_from(device, dtype)
    result = evaluate_on_coco(model, questions, means=means, out=out_file)
    table = Table("kind", "questions", "accuracy", title=str(model))
    for kind, accuracy in result["accuracy"].items():
        table.add_row(kind, str(result["questions"][kind]), f"{accuracy:.3f}")
    out.print(table)
