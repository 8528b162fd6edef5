"""Recipes, ablate."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from caldera.cli.options import Device, Dtype, Set, runtime_from, stderr_console, stdout_console


def ablate(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the sweep.")] = Path(
        "runs/ablations"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Times that each variant is trained.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only this variant and what it is compared with; many times."
        ),
    ] = None,
    list_variants: Annotated[
        bool, typer.Option("--list", help="Tell the variants, and train none.")
    ] = False,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Train variants of the demo that differ in one thing, as the papers' ablations do. Started again, it goes on.

    [bold]Examples[/bold]

      caldera ablate

      caldera ablate --only linear --only "no stage 1" --seeds 1

      caldera ablate --set scenes.train=400 --seeds 1 --out runs/quick
    """  # fmt: skip
    from caldera.overrides import apply_overrides
    from caldera.pipelines.ablations import ablations, base_recipe, select_variants

    recipe = apply_overrides(base_recipe(), settings or ())
    variants = select_variants(ablations(recipe), only or ())
    if list_variants:
        table = Table("variant", "what is other", "compared with", "in the papers")
        for one in variants:
            table.add_row(
                one.name,
                one.description,
                "" if one.baseline == one.name else one.baseline,
                one.paper,
            )
        stdout_console.print(table)
        return
    from caldera.pipelines.ablation_run import run_ablations
    from caldera.pipelines.ablations import WITH_REASONS

    rows = run_ablations(out_folder, recipe, variants, range(seeds), runtime_from(device, dtype))
    columns = ("variant", "right", "worst to best seed", "with reasons", "change", "95 % interval")
    table = Table(*columns, title="shares of right answers in %")
    for row in rows:
        change, reasons = row.change, row.by_kind.get(WITH_REASONS)
        table.add_row(
            row.variant.name,
            f"{row.by_kind['overall'] * 100:.1f}",
            f"{row.lowest * 100:.1f} to {row.highest * 100:.1f}",
            "" if reasons is None else f"{reasons * 100:.1f}",
            "" if change is None else f"{change.value * 100:+.1f}",
            "" if change is None else f"{change.low * 100:+.1f} to {change.high * 100:+.1f}",
        )
    stdout_console.print(table)
    stderr_console.print(
        f"the table with the papers' figures: {out_folder / 'ablations.md'}", soft_wrap=True
    )


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show every setting of this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all recipes with sizes, data and hyper-parameters, the paper's in brackets behind what is here.

    [bold]Examples[/bold]

      caldera recipes

      caldera recipes llava_15_7b

      caldera recipes llava_15_7b --json
    """
    import json

    from caldera.recipes.describe import describe
    from caldera.recipes.registry import RECIPES, find_recipe

    chosen = [find_recipe(each) for each in ([name] if name else RECIPES)]
    if as_json:
        told = [describe(recipe) for recipe in chosen]
        stdout_console.print_json(json.dumps(told[0] if name else told))
    elif name:
        _show(describe(chosen[0]))
    else:
        _overview(chosen)


def _overview(recipes: list[Any]) -> None:
    """Print a row for each stage of each recipe."""
    from caldera.recipes.describe import COLUMNS, overview

    table = Table(caption="weights: vision + projector + language; 128 (128): here (the paper); "
                  "?: not verified; -: none")  # fmt: skip
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for recipe in recipes:
        first, last = overview(recipe)
        table.add_row(*first)
        table.add_row(*last, end_section=True)
    stdout_console.print(table)


def _show(told: dict[str, Any]) -> None:
    """Print every setting of one recipe beside what is cited, and where from."""
    from caldera.recipes.describe import compact_number, format_value

    table = Table(title=told["paper"] or told["name"])
    for column in ("setting", "here", "paper", "source"):
        table.add_column(column, overflow="fold")
    for setting in told["settings"]:
        paper, source = "", ""
        if setting["cited"]:
            paper = format_value(_frozen(setting["paper"])) + ("" if setting["certain"] else " ?")
            source = "; ".join(filter(None, (setting["source"], setting["note"])))
        differs = setting["cited"] and setting["paper"] != setting["value"]
        style = "bold yellow" if differs else None
        table.add_row(
            setting["name"], format_value(_frozen(setting["value"])), paper, source, style=style
        )
    stdout_console.print(table)
    sizes = ", ".join(f"{part} {compact_number(size)}" for part, size in told["parameters"].items())
    lines = [f"weights: {sizes}"]
    for part, needs in told["data"].items():
        lines.append(f"{part} data: {needs['name']}, {needs['file']}; {needs['source']}")
    lines += [f"note: {note}" for note in told["notes"]]
    for line in lines:
        stdout_console.print(line, markup=False, highlight=False, soft_wrap=True)


def _frozen(value: object) -> object:
    """Return a list out of JSON as the tuple that it was."""
    return tuple(value) if isinstance(value, list) else value
