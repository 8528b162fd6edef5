"""The command line: each command parses and makes one call.

Nothing heavy is imported before a command needs it, so that `caldera --help` answers at once. The environment is read
here and nowhere else.
"""

import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.table import Table
from typer.core import TyperGroup

from caldera import __version__
from caldera.cli import data, datasets, evaluate, export, import_model, train
from caldera.cli.options import (
    Device,
    Dtype,
    Quantize,
    Set,
    quantization_from,
    runtime_from,
    stderr_console,
    stdout_console,
)
from caldera.cli.recipes import ablate, recipes
from caldera.cli.serve import serve
from caldera.errors import CalderaError

EXIT_CODES = (
    "Exit codes: 0 done, 1 a fault in caldera itself, 2 wrong usage, 3 bad input, 4 cannot write, "
    "5 a teacher's or judge's key, quota or budget ended the run, 6 an evaluation is not valid, "
    "7 training cannot go on, 8 an exported model differs, 130 stopped by Ctrl-C."
)


_INTERRUPT_MESSAGES = {
    "": "stopped; what was finished is kept",
    "demo": "stopped; what was finished is kept, and the same command goes on",
    "train": "stopped; what was finished is kept, and the same command with --resume goes on",
    "chat": "stopped",
    "import": "stopped; nothing was written",
    "evaluate": "stopped; what was answered is kept, and the same command goes on",
}
"""What Ctrl-C is answered with, by command."""


class _ErrorHandlingGroup(TyperGroup):
    """Ends every foreseen failure with one line and its exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as its base has it
        """Run a command."""
        try:
            return super().invoke(ctx)
        except CalderaError as error:
            stderr_console.print(
                f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True
            )
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            stderr_console.print(
                _INTERRUPT_MESSAGES.get(ctx.invoked_subcommand or "", _INTERRUPT_MESSAGES[""]),
                soft_wrap=True,
            )
            sys.exit(130)


app = typer.Typer(
    name="caldera",
    cls=_ErrorHandlingGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog=EXIT_CODES,
)
data.app.command("import")(datasets.import_data)
data.app.command()(datasets.mix)
data.app.command()(datasets.balance)
data.app.command()(datasets.stats)
data.app.command()(datasets.export)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")
app.command()(export.export)
app.command()(export.parity)
app.command()(recipes)
app.command()(ablate)
app.command()(serve)
app.command("import")(import_model.import_weights)


def _version(wanted: bool) -> None:
    if wanted:
        stdout_console.print(f"caldera {__version__}")
        raise typer.Exit


@app.callback()
def caldera(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """LLaVA, whole: annotated images in, a visual assistant out.

    [bold]Examples[/bold]

      caldera demo                                        the whole way on drawn scenes, in minutes

      caldera data generate coco photos/ --out data.json  instruction data from captions and boxes

      caldera train pretrain --data pairs.json --out runs/one

      caldera train finetune --model runs/one/model --data data.json --out runs/two

      caldera chat runs/two/model --image dog.jpg

      caldera serve runs/two/model

      caldera import llava-1.5-7b-hf --template vicuna_v1 --out models/llava

      caldera recipes                                     LLaVA's own models, with the papers' numbers

      caldera export runs/two/model --to gguf --out runs/two/gguf
    """


@app.command()
def demo(
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/demo"),
    recipe: Annotated[str, typer.Option(help="demo or demo_smollm2.")] = "demo",
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Go LLaVA's whole way on drawn scenes: data, two stages, evaluation, report. Started again, it goes on.

    [bold]Examples[/bold]

      caldera demo

      caldera demo --out runs/small --set scenes.train=500
    """
    from caldera.overrides import apply_overrides
    from caldera.pipelines.scene_run import run_scene_recipe
    from caldera.recipes.registry import find_scene_recipe

    chosen = apply_overrides(find_scene_recipe(recipe), settings or ())
    run_scene_recipe(chosen, out_folder, runtime_from(device, dtype))
    _show_demo(out_folder)


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Image to show; many times.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Ask this once; only the answer is printed.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy. \\[default: 0 with --prompt, else 0.2]")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens only.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16, or auto: float32 if stored so, else bfloat16 where the processor is fast at it."
        ),
    ] = "auto",
    quantize: Quantize = None,
) -> None:
    """Talk about images. In the talk: /image FILE, /reset, /help, /exit.

    [bold]Examples[/bold]

      caldera chat runs/demo/model --image dog.jpg

      caldera chat runs/demo/model --image dog.jpg --prompt "What is in the image?"
    """
    from caldera.chat.chat_model import load_session, with_stored_dtype
    from caldera.chat.terminal import answer_once, run_repl
    from caldera.images.decoding import resolve_image_path
    from caldera.inference.engine import EngineConfig, SamplingParams

    usual = 0.2 if prompt is None else 0.0
    heat = usual if temperature is None else temperature
    sampling = SamplingParams(
        temperature=heat, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
    )
    shown = [resolve_image_path(text) for text in image or ()]
    compute = runtime_from(device, dtype).compute
    compute = with_stored_dtype(model, compute) if dtype == "auto" else compute
    settings = EngineConfig(slots=1, quantization=quantization_from(quantize))
    with closing(load_session(model, sampling, compute, settings)) as session:
        if prompt is None:
            run_repl(session, shown)
        else:
            answer_once(session, shown, prompt)


def _show_demo(folder: Path) -> None:
    """Print a demo's table and where everything is."""
    import json

    results = json.loads((folder / "results.json").read_text())
    columns = {
        "accuracy": "right",
        "majority_baseline": "majority_baseline",
        "shuffled_images": "other image",
        "without_pretraining": "no stage 1",
    }
    table = Table("held-out questions", "n", *columns.values(), title="share of right answers")
    for kind, count in results["questions"].items():
        scores = (f"{results[column].get(kind, 0):.3f}" for column in columns)
        table.add_row(kind, str(count), *scores, end_section=kind == "overall")
    stdout_console.print(table)
    image = min((folder / "scenes" / "held_out" / "held_out").glob("*.jpg"))
    for line in (
        f"caption CIDEr-D {results['caption_cider']:.2f} (0 to 10)",
        f"time {results['seconds']['total']:.0f} s",
        f"report   {folder / 'report.html'}",
        f"results  {folder / 'results.json'}",
        f"model    {folder / 'model'}",
        f"chat     caldera chat {folder / 'model'} --image {image}",
    ):
        stdout_console.print(line, markup=False, highlight=False, soft_wrap=True)


def _configure_logging() -> None:
    """Send logs to the error stream, and keep libraries from talking."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    handler = RichHandler(
        console=stderr_console, show_time=False, show_level=False, show_path=False
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("caldera").setLevel(logging.INFO)


def main() -> None:
    """Run a command; every foreseen failure is one line and its exit code."""
    _configure_logging()
    try:
        app(standalone_mode=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("CALDERA_DEBUG"):
            raise
        stderr_console.print(
            f"a fault in caldera: {type(error).__name__}: {error}; please report it with "
            "what the same command prints under CALDERA_DEBUG=1",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(1)
