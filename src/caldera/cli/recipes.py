"""`caldera recipes`: what can be run whole, beside the papers' numbers."""

from typing import Annotated, Any

import typer
from rich.table import Table

from caldera.cli.options import stdout_console


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

    from caldera.recipes.listing import describe
    from caldera.recipes.table import RECIPES, find_recipe

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
    from caldera.recipes.listing import COLUMNS, overview

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
    from caldera.recipes.listing import compact_number, format_value

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
