"""`caldera ablate`: take one thing away at a time, train again, and see what it was worth."""

from pathlib import Path
from typing import Annotated

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
    from caldera.recipes.ablations import ablations, base_recipe, select_variants
    from caldera.settings import apply_overrides

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
    from caldera.recipes.ablation_table import WITH_REASONS
    from caldera.recipes.sweep import run_ablations

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
