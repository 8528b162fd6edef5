"""Options that several commands share, and the two consoles they print to."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from caldera.errors import UnknownNameError

stdout_console = Console(markup=False, emoji=False)
"""Results, as they are: a kind called "[/b]" or ":x:" is neither a style nor a sign."""

stderr_console = Console(stderr=True, markup=False, emoji=False)
"""Everything else, as it is too."""

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting, such as learning_rate, batch_size, epochs or max_steps; many times.",
    ),
]
MaxBad = Annotated[
    float,
    typer.Option(
        min=0.0, max=1.0, help="Share of bad items that may be left out (and are listed); 0 stops."
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(help="Folder that image paths start from. \\[default: the data file's own]"),
]
IgnoreField = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Surplus field of records to pass over; many times."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a broken-off run was.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that decode images ahead, where features are not kept. \\[default: cores - 1, at most 8]",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="int8",
        help="Weights of the language model in 8 bits, on a processor: faster, in half the memory of bfloat16.",
    ),
]


def quantization_from(quantize: str | None) -> Any:  # noqa: ANN401 - its type is heavy to import
    """Say which bits the engine's weights get.

    Raises:
        UsageError: There is no such way.
    """
    if quantize is None:
        return "as stored"
    if quantize != "int8":
        raise UnknownNameError("quantisation", quantize, ("int8",))
    return quantize


def runtime_from(device: str, dtype: str, workers: int | None = None) -> Any:  # noqa: ANN401 - its type is heavy to import
    """Choose device, precision, how progress is shown, and how many processes decode.

    Raises:
        UsageError: There is no such device or precision.
    """
    from typing import get_args

    from caldera.devices import DtypeName, Runtime, choose_device
    from caldera.progress import default_progress

    if dtype not in get_args(DtypeName):
        raise UnknownNameError("dtype", dtype, get_args(DtypeName))
    compute = choose_device(device, dtype)  # type: ignore[arg-type] # checked above
    if workers is None:
        return Runtime(compute, default_progress())
    return Runtime(compute, default_progress(), workers)
