"""Commands `caldera recipes` and `caldera ablate`."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from caldera.cli.options import (
    Device,
    Dtype,
    Set,
    print_message,
    print_result,
    runtime_from,
    stdout_console,
)

if TYPE_CHECKING:
    from caldera.pipelines.ablations import AblationResult
    from caldera.recipes.recipe import Recipe


def ablate(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of all runs.")] = Path(
        "runs/ablations"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs of each variant.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this variant and its baseline. Repeatable."),
    ] = None,
    list_variants: Annotated[bool, typer.Option("--list", help="Only list the variants.")] = False,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Train variants of the demo that differ in one component, as in the papers' ablations. Repeat it to resume.

    [bold]Examples[/bold]

      caldera ablate

      caldera ablate --only linear --only "no stage 1" --seeds 1

      caldera ablate --set scenes.train=400 --seeds 1 --out runs/quick
    """
    from caldera.overrides import apply_overrides
    from caldera.pipelines.ablations import ablations, base_recipe, select_variants

    recipe = apply_overrides(base_recipe(), settings or ())
    variants = select_variants(ablations(recipe), only or ())
    if list_variants:
        table = Table("variant", "change", "compared with", "in the papers")
        for variant in variants:
            baseline = "" if variant.baseline == variant.name else variant.baseline
            table.add_row(variant.name, variant.description, baseline, variant.paper)
        stdout_console.print(table)
        return
    from caldera.pipelines.ablation_run import run_ablations

    results = run_ablations(out_folder, recipe, variants, range(seeds), runtime_from(device, dtype))
    _print_ablations(results)
    print_message(f"table with the papers' results: {out_folder / 'ablations.md'}")


def _print_ablations(results: "Sequence[AblationResult]") -> None:
    """Print a row for each variant."""
    from caldera.pipelines.ablations import WITH_REASONS

    columns = ("variant", "correct", "worst to best", "with reasons", "change", "95 % interval")
    table = Table(*columns, title="shares of correct answers in %")
    for result in results:
        change, reasons = result.change, result.by_kind.get(WITH_REASONS)
        table.add_row(
            result.variant.name,
            f"{result.by_kind['overall'] * 100:.1f}",
            f"{result.lowest * 100:.1f} to {result.highest * 100:.1f}",
            "" if reasons is None else f"{reasons * 100:.1f}",
            "" if change is None else f"{change.value * 100:+.1f}",
            "" if change is None else f"{change.low * 100:+.1f} to {change.high * 100:+.1f}",
        )
    stdout_console.print(table)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print every setting of this recipe.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all recipes with sizes, data and hyper-parameters, the paper's value in parentheses.

    [bold]Examples[/bold]

      caldera recipes

      caldera recipes llava_15_7b

      caldera recipes llava_15_7b --json
    """
    from caldera.recipes.describe import describe
    from caldera.recipes.registry import RECIPES, find_recipe

    selected = [find_recipe(recipe) for recipe in ([name] if name else RECIPES)]
    if as_json:
        descriptions = [describe(recipe) for recipe in selected]
        stdout_console.print_json(json.dumps(descriptions[0] if name else descriptions))
    elif name:
        _print_recipe(describe(selected[0]))
    else:
        _print_overview(selected)


def _print_overview(recipes: "list[Recipe]") -> None:
    """Print each recipe with its stages, as text that fits any width."""
    from caldera.recipes.describe import overview

    for recipe in recipes:
        rows = overview(recipe)
        print_result(f"{recipe.name}: {rows[0][1]} parameters")
        _print_wrapped(
            [
                f"  {stage}: {data}; trains {trainable}; batch {batch}, learning rate {rate}, epochs {epochs}"
                for _, _, stage, data, trainable, batch, rate, epochs in rows
            ],
            " " * 12,
        )
    print_result(
        "parameters: vision + projector + language. 128 (128): here (in the paper).",
        "?: not verified. -: none. Every setting of one recipe: caldera recipes NAME",
    )


def _print_recipe(description: dict[str, Any]) -> None:
    """Print every setting of one recipe with the cited value and its source."""
    from caldera.recipes.describe import compact_number, format_value

    table = Table(title=description["paper"] or description["name"])
    table.add_column("setting", no_wrap=True)
    for column in ("here", "paper", "source"):
        table.add_column(column, overflow="fold")
    for setting in description["settings"]:
        here, paper, source = format_value(_from_json(setting["value"])), "", ""
        if setting["cited"]:
            paper = format_value(_from_json(setting["paper"]))
            paper += "" if setting["certain"] else " ?"
            source = "; ".join(filter(None, (setting["source"], setting["note"])))
        differs = setting["cited"] and setting["paper"] != setting["value"]
        table.add_row(
            setting["name"], here, paper, source, style="bold yellow" if differs else None
        )
    stdout_console.print(table)
    sizes = description["parameters"].items()
    lines = [
        f"weights: {', '.join(f'{part} {compact_number(size)}' for part, size in sizes)}",
        *(
            f"{part} data: {needs['name']}, {needs['file']}; {needs['source']}"
            for part, needs in description["data"].items()
        ),
        *(f"note: {note}" for note in description["notes"]),
    ]
    _print_wrapped(lines, " " * 2)


def _print_wrapped(lines: Sequence[str], indent: str) -> None:
    """Print lines of text, wrapped to the width of the terminal; all but the first line of each are indented."""
    for line in lines:
        print_result(*textwrap.wrap(line, stdout_console.width, subsequent_indent=indent))


def _from_json(value: object) -> object:
    """Return a JSON list as a tuple, as it was in the recipe."""
    return tuple(value) if isinstance(value, list) else value
