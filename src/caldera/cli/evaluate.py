"""`caldera evaluate ...`: ask a model the questions of a task, or score answers that are there already."""

from pathlib import Path
from typing import Annotated

import typer

from caldera.cli import evaluate_run
from caldera.cli.evaluate_run import KeyVariable, Model, RunFolder, Served, SetAsking, Tasks
from caldera.cli.options import Device, Dtype, MaxBad, means_from

app = typer.Typer(
    cls=Tasks,
    no_args_is_help=True,
    help="Ask a model the questions of a task (`caldera evaluate TASK --model MODEL`), or score answers.",
)
app.command(hidden=True)(evaluate_run.run)
app.command()(evaluate_run.compare)


@app.command()
def coco(
    model: Model,
    data: Annotated[Path, typer.Option(help="COCO folder to write the questions from.")],
    split: Annotated[str | None, typer.Option(help="COCO split, such as val2017.")] = None,
    per_picture: Annotated[
        int, typer.Option(min=1, help="Questions about each picture alone.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice and wording of questions.")] = 0,
    out_folder: RunFolder = None,
    max_bad: MaxBad = 0.0,
    settings: SetAsking = None,
    served: Served = "",
    key_variable: KeyVariable = "OPENAI_API_KEY",
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
    folder = out_folder or evaluate_run.usual_folder("coco", model)
    results = evaluate_on_coco(
        model,
        questions,
        out=folder,
        means=means_from(device, dtype),
        **evaluate_run.asking_from(settings, served, key_variable),
    )
    evaluate_run.show_run(results, folder)
