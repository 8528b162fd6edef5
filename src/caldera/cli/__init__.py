"""Command line: each command parses its options and calls the library.

Heavy modules are imported only when a command needs them, so that `caldera --help` is fast. caldera's own
environment variables are read here only.
"""

import errno
import io
import json
import logging
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from caldera import __version__
from caldera.cli import data, datasets, evaluate, export, import_model, train
from caldera.cli.doctor import doctor
from caldera.cli.interruptions import StoppableGroup
from caldera.cli.options import (
    Device,
    Dtype,
    MaxBadFraction,
    ModelName,
    Offline,
    Quantize,
    Set,
    StoredDtype,
    print_message,
    print_result,
    quantization_from,
    raise_if_renamed_option,
    runtime_from,
    silence_libraries,
    stderr_console,
    stdout_console,
)
from caldera.cli.push import push
from caldera.cli.recipes import ablate, recipes
from caldera.cli.serve import serve
from caldera.errors import CalderaError, Interrupted, OutputError, UsageError

EXIT_CODES = (
    "Exit codes: 0 success, 1 internal error, 2 wrong usage, 3 invalid input, 4 cannot write, 5 the key, quota or "
    "budget of an LLM teacher or judge ended the run, 6 invalid evaluation, 7 training cannot continue, 8 an exported "
    "model differs, 130 stopped by Ctrl-C, 143 by SIGTERM."
)


class _ErrorHandlingGroup(StoppableGroup):
    """Root group that ends every expected failure with one line and its exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - signature of the base class
        """Run a command."""
        try:
            try:
                return super().invoke(ctx)
            except Exception as error:
                raise_if_renamed_option(error)
                raise
        except Interrupted as interrupted:
            print_message(str(interrupted))
            sys.exit(interrupted.exit_code)
        except CalderaError as error:
            stderr_console.print(
                f"error: {error}", style="bold red", highlight=False, soft_wrap=True
            )
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            # Only `chat` lets it pass.
            print_message("stopped")
            sys.exit(128 + signal.SIGINT)


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
data.app.command()(datasets.page)
data.app.command()(datasets.to_parquet)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")
app.command()(export.export)
app.command()(export.parity)
app.command()(push)
app.command()(recipes)
app.command()(ablate)
app.command()(serve)
app.command()(doctor)
app.command("import")(import_model.import_weights)


def _version(requested: bool) -> None:
    if requested:
        stdout_console.print(f"caldera {__version__}")
        raise typer.Exit


@app.callback()
def caldera(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """LLaVA, complete: data generation, training, evaluation, chat and server of a visual assistant.

    [bold]Examples[/bold]

      caldera demo                                        the complete method on drawn scenes, in minutes

      caldera data generate coco photos/ --out data.json  instruction data from captions and boxes

      caldera train pretrain --data pairs.json --out runs/one

      caldera train finetune --model runs/one/model --data data.json --out runs/two

      caldera chat runs/two/model --image dog.jpg

      caldera serve runs/two/model

      caldera import llava-1.5-7b-hf --template vicuna_v1 --out models/llava

      caldera recipes                                     LLaVA's own models, with the papers' numbers

      caldera export runs/two/model --to gguf --out runs/two/gguf

      caldera push runs/two ORG/NAME                      share it on the Hugging Face Hub, with a model card
    """


@app.command()
def demo(
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Run folder. \\[default: runs/RECIPE]")
    ] = None,
    recipe: Annotated[str, typer.Option(help="demo, demo_smollm2 or photos.")] = "demo",
    images: Annotated[
        Path | None,
        typer.Option(help="photos: folder with a folder of photos for each class, or a table."),
    ] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_bad_fraction: MaxBadFraction = 0.0,
) -> None:
    """Run LLaVA's complete method on drawn scenes or your photos: data, both stages, evaluation. Repeat it to resume.

    [bold]Examples[/bold]

      caldera demo

      caldera demo --out runs/small --set scenes.train=500

      caldera demo --recipe photos --images clothing-dataset-small
    """
    from caldera.overrides import apply_overrides
    from caldera.recipes.recipe import PhotoRecipe
    from caldera.recipes.registry import find_demo_recipe

    # Settings are checked before torch is imported, which takes seconds.
    chosen = apply_overrides(find_demo_recipe(recipe), settings or ())
    out_folder = out_folder or Path("runs") / recipe
    if isinstance(chosen, PhotoRecipe) != (images is not None):
        raise UsageError(
            f"the recipe {recipe} needs photos; add --images FOLDER with a folder for each class"
            if images is None
            else f"the recipe {recipe} draws its images; remove --images, or add --recipe photos"
        )
    if isinstance(chosen, PhotoRecipe):
        assert images is not None  # as checked
        from caldera.pipelines.photo_run import run_photo_recipe

        runtime = runtime_from(device, dtype)
        example = run_photo_recipe(chosen, images, out_folder, runtime, max_bad_fraction).example
    else:
        from caldera.pipelines.scene_run import run_scene_recipe

        run_scene_recipe(chosen, out_folder, runtime_from(device, dtype))
        example = min((out_folder / "scenes" / "held_out" / "held_out").glob("*.jpg"))
    _print_demo(out_folder, example)


@app.command()
def chat(
    model: ModelName,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Image to ask about. Repeatable.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Print only the answer to this.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy. \\[default: 0 with --prompt, else 0.2]")
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens of this total probability.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of an answer.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    device: Device = "auto",
    dtype: StoredDtype = "auto",
    quantize: Quantize = None,
    offline: Offline = False,
) -> None:
    """Chat about images. Commands in the chat: /image FILE, /reset, /help, /exit.

    [bold]Examples[/bold]

      caldera chat runs/demo/model --image dog.jpg

      caldera chat runs/demo/model --image dog.jpg --prompt "What is in the image?"

      caldera chat llava-hf/llava-1.5-7b-hf --image dog.jpg
    """
    from caldera.chat.chat_model import load_session, with_stored_dtype
    from caldera.chat.terminal import answer_once, run_repl
    from caldera.formats.model_paths import find_model
    from caldera.images.decoding import resolve_image_path
    from caldera.inference.engine import EngineConfig, SamplingParams

    if temperature is None:
        temperature = 0.2 if prompt is None else 0.0
    sampling = SamplingParams(
        temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
    )
    images = [resolve_image_path(text) for text in image or ()]
    compute = runtime_from(device, dtype).compute
    settings = EngineConfig(slots=1, quantization=quantization_from(quantize))
    folder = find_model(model)
    compute = with_stored_dtype(folder, compute) if dtype == "auto" else compute
    with closing(load_session(folder, sampling, compute, settings)) as session:
        # Ctrl-C ends an answer from here on, not the process.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if prompt is None:
            run_repl(session, images)
        else:
            answer_once(session, images, prompt)


def _print_demo(folder: Path, example: Path) -> None:
    """Print the table of a demo, its files, and how to chat about an image."""
    results = json.loads((folder / "results.json").read_text())
    headings = {
        "accuracy": "accuracy",
        "majority_baseline": "majority baseline",
        "shuffled_images": "shuffled images",
        "without_pretraining": "without stage 1",
    }
    columns = [name for name in headings if name in results]
    table = Table(
        *("held-out questions", "n", *(headings[name] for name in columns)),
        title="share of correct answers",
    )
    for kind, count in results["questions"].items():
        scores = (f"{results[column].get(kind, 0):.3f}" for column in columns)
        table.add_row(kind, str(count), *scores, end_section=kind == "overall")
    stdout_console.print(table)
    if "caption_cider" in results:
        print_result(f"caption CIDEr-D {results['caption_cider']:.2f} (0 to 10)")
    print_result(
        f"time {results['seconds']['total']:.0f} s",
        f"report   {folder / 'report.html'}",
        f"results  {folder / 'results.json'}",
        f"model    {folder / 'model'}",
        f"chat     caldera chat {folder / 'model'} --image {example}",
    )


class _StderrHandler(logging.Handler):
    """Prints log lines to stderr, unchanged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        print_message(self.format(record))


def _configure_logging() -> None:
    """Send logs to stderr, and silence the libraries."""
    silence_libraries()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_StderrHandler()])
    logging.getLogger("caldera").setLevel(logging.INFO)


def _replace_unknown_chars() -> None:
    """Write ? for a character that the terminal's encoding lacks, and read what is not valid in it as U+FFFD."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main() -> None:
    """Run a command; every expected failure is one line and its exit code."""
    _replace_unknown_chars()
    _configure_logging()
    try:
        app(standalone_mode=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("CALDERA_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            print_message(f"error: cannot write the output: {error.strerror}; free space")
            sys.exit(OutputError.exit_code)
        print_message(
            f"internal error: {type(error).__name__}: {error}; please report it with the output of the same command "
            "under CALDERA_DEBUG=1"
        )
        sys.exit(1)
