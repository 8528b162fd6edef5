"""Commands `caldera data generate`, `check` and `inspect`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from caldera.cli.interruptions import StoppableGroup
from caldera.cli.options import (
    AllowTruncated,
    Boxes,
    Captions,
    Columns,
    IgnoreField,
    ImageLimit,
    Images,
    ImagesFrom,
    Instances,
    MaxBadFraction,
    Offline,
    check_out_file,
    print_message,
    raise_if_renamed_command,
    read_options_from,
    stderr_console,
    stdout_console,
)
from caldera.errors import OutputError, UsageError

if TYPE_CHECKING:
    from caldera.instructions.generate import GenerateConfig
    from caldera.instructions.llm_teacher.teacher import LLMTeacherConfig
    from caldera.templates.inspection import SegmentKind


class _DataGroup(StoppableGroup):
    """Group `data`, with hints for renamed commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - signature of the base class
        """Return the command of the first argument."""
        raise_if_renamed_command(ctx.info_name, args[0])
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_DataGroup, no_args_is_help=True, help="Generate, check and convert instruction data."
)

KINDS_HELP = """
Kinds, optionally with shares: conversation,detail:0.5. Available: caption, conversation, detail, reasoning, vqa,
context. Without shares an LLM teacher uses LLaVA's mix, 58:23:77. \\[default: conversation,detail,reasoning,context;
for pairs: caption]
"""
REQUEST_HELP = """
Setting of the requests: concurrency, requests_per_minute, tokens_per_minute, temperature, max_tokens, timeout, retries,
max_repairs ... Repeatable.
"""
Teacher = Annotated[str, typer.Option(help="scripted, openai (any compatible server) or replay.")]
OutFile = Annotated[
    Path, typer.Option("--out", callback=check_out_file, help="Data file, .json or .jsonl.")
]
Kinds = Annotated[str | None, typer.Option(help=KINDS_HELP)]
Model = Annotated[str, typer.Option(help="Model of the teacher, for --teacher openai.")]
BaseUrl = Annotated[
    str,
    typer.Option(
        help="URL of the server: OpenAI, vLLM, llama.cpp, Ollama, caldera ... \\[default: OpenAI]"
    ),
]
ApiKeyEnv = Annotated[
    str,
    typer.Option(metavar="NAME", help="Environment variable of the API key, which is not saved."),
]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Your own prompts: KIND/system.txt and examples."),
]
Language = Annotated[str, typer.Option(help="Packaged prompts: english or chinese.")]
Price = Annotated[
    str | None,
    typer.Option(metavar="PROMPT,REPLY", help="Prices per million tokens, such as 0.15,0.60."),
]
NoPrice = Annotated[bool, typer.Option("--no-price", help="Do not count costs.")]
MaxCost = Annotated[
    float | None, typer.Option(min=0.0, help="Maximum cost of the run, resumed parts included.")
]
MaxRequests = Annotated[
    int | None, typer.Option(min=1, help="Maximum requests of the run, resumed parts included.")
]
AllowChangedRun = Annotated[
    bool,
    typer.Option("--allow-changed-run", help="Resume with other prompts, model or annotations."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only estimate requests and cost.")]
ReplayFrom = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="For --teacher replay: the run whose replies are used."),
]
RequestSettings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=REQUEST_HELP)
]


def llm_teacher_from(
    teacher: str,
    api_key_env: str,
    base_url: str,
    price: str | None,
    settings: list[str] | None,
    **fields: Any,  # noqa: ANN401 - fields of LLMTeacherConfig, which checks them
) -> "LLMTeacherConfig | None":
    """Return the configuration of an LLM teacher, with the key from the environment; None for another teacher."""
    from pydantic import SecretStr

    from caldera.instructions.llm_teacher.teacher import LLM_CLIENTS, LLMTeacherConfig
    from caldera.llm_client.budget import parse_price
    from caldera.llm_client.client import RequestConfig
    from caldera.llm_client.openai_client import OPENAI_URL
    from caldera.overrides import apply_overrides

    if teacher not in LLM_CLIENTS:
        return None
    key = os.environ.get(api_key_env, "").strip()
    return LLMTeacherConfig(
        teacher=teacher,
        base_url=base_url or OPENAI_URL,
        key=SecretStr(key) if key else None,
        price=parse_price(price) if price else None,
        request_config=apply_overrides(RequestConfig(), settings or ()),
        **fields,
    )


def print_estimate(config: "GenerateConfig") -> None:
    """Print the requests, tokens and cost of a run; raise unless its teacher is an LLM."""
    from caldera.instructions.generate import estimate_data_cost

    llm_teacher = config.llm_teacher
    if llm_teacher is None:
        raise UsageError("--dry-run estimates the requests to an LLM; add --teacher openai")
    estimate = estimate_data_cost(config, llm_teacher)
    table = Table("kind", "dialogues", title="nothing was sent")
    for kind, count in estimate.dialogues.items():
        table.add_row(kind, str(count))
    stderr_console.print(table)
    total = estimate.dialogues.total()
    print_message(
        f"requests: {total}, and up to {total * llm_teacher.request_config.max_repairs} more for repairs",
        f"tokens: about {estimate.prompt_tokens} of prompts, about {estimate.reply_tokens} of replies "
        f"(at most {estimate.max_reply_tokens})",
    )
    if estimate.cost is None:
        print_message("cost: unknown; add --price PROMPT,REPLY")
    else:
        print_message(
            f"cost: about {estimate.cost:.4f}, at most {estimate.max_cost:.4f} without repairs"
        )


@app.command()
def generate(
    source: Annotated[str, typer.Argument(help="coco (a folder) or pairs (a file).")],
    path: Annotated[Path, typer.Argument(help="Annotations, in a format of docs/data.md.")],
    out_file: OutFile,
    teacher: Teacher = "scripted",
    kinds: Kinds = None,
    split: Annotated[str | None, typer.Option(help="COCO split, such as train2017.")] = None,
    images: Images = None,
    captions: Captions = None,
    instances: Instances = None,
    boxes: Boxes = None,
    columns: Columns = None,
    seed: Annotated[int, typer.Option(help="Seed for the wording.")] = 0,
    max_bad_fraction: MaxBadFraction = 0.0,
    ignore_field: IgnoreField = None,
    model: Model = "",
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    prompts: Prompts = None,
    language: Language = "english",
    price: Price = None,
    no_price: NoPrice = False,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    allow_changed_run: AllowChangedRun = False,
    dry_run: DryRun = False,
    replay_from: ReplayFrom = None,
    settings: RequestSettings = None,
) -> None:
    """Generate instruction data about annotated images, in LLaVA's JSON.

    [bold]Examples[/bold]

      caldera data generate coco photos/ --out data.json

      caldera data generate pairs captions.csv --out pretrain.json

      caldera data generate coco photos/ --teacher openai --base-url http://127.0.0.1:8000/v1 --model qwen --price 0,0
      --out data.json
    """
    from caldera.annotations.registry import SourceOptions
    from caldera.instructions.generate import GenerateConfig

    prompting = {"model": model, "prompts": prompts, "language": language}
    limits = {"no_price": no_price, "max_cost": max_cost, "max_requests": max_requests}
    resuming = {"allow_changed_run": allow_changed_run, "replay_from": replay_from}
    llm_teacher = llm_teacher_from(
        teacher, api_key_env, base_url, price, settings, **prompting, **limits, **resuming
    )
    ignored = frozenset(ignore_field or ())
    files: dict[str, Any] = {"images": images, "captions": captions, "instances": instances}
    reading: dict[str, Any] = {"columns": columns, "boxes": boxes, "ignore_fields": ignored}
    options = SourceOptions(split=split, **files, **reading)
    task: dict[str, Any] = {"source": source, "path": path, "options": options, "kinds": kinds}
    teaching: dict[str, Any] = {"teacher": teacher, "llm_teacher": llm_teacher, "seed": seed}
    config = GenerateConfig(**task, **teaching, max_bad_fraction=max_bad_fraction)
    if dry_run:
        print_estimate(config)
    else:
        _generate(config, out_file)


def _generate(config: "GenerateConfig", out_file: Path) -> None:
    """Write a data file, and print the written and the rejected dialogues."""
    from caldera.datasets.imbalances import AnswerCounts
    from caldera.instructions.generate import generate_data
    from caldera.progress import default_progress

    data = generate_data(config, out_file, default_progress())
    table = Table("kind", "dialogues", title=f"{out_file}")
    for kind, count in data.by_kind.items():
        table.add_row(kind, str(count))
    stderr_console.print(table)
    print_message(*(f"not written: {n} x {reason}" for reason, n in data.rejected.most_common()))
    if config.llm_teacher and data.rejected:
        run_folder = out_file.with_suffix(".run")
        print_message(f"listed in: {run_folder}/rejected.jsonl, {run_folder}/failed.jsonl")
    counts = AnswerCounts()
    for conversation in data.conversations:
        counts.add(conversation)
    print_message(*(f"warning: {item}" for item in counts.imbalances()))
    print_message(f"next: caldera data check {out_file}; caldera data page {out_file}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Data file, in a format of docs/data.md.")],
    images: Images = None,
    decode_images: Annotated[
        bool,
        typer.Option(
            "--decode-images/--no-decode-images",
            help="Decode every image, or only check that it exists.",
        ),
    ] = True,
    images_from: ImagesFrom = None,
    ignore_field: IgnoreField = None,
    allow_truncated: AllowTruncated = False,
    image_limit: ImageLimit = None,
    max_bad_fraction: MaxBadFraction = 0.0,
) -> None:
    """Check every record and every image of a data file; exit code 3 if one is invalid.

    [bold]Examples[/bold]

      caldera data check data.json

      caldera data check mix665k.json --images playground/data --ignore-field model
    """
    from caldera.datasets.importer import skipped_path
    from caldera.datasets.validation import validate_file
    from caldera.files.skipped_items import SkippedItems
    from caldera.progress import default_progress

    skipped = SkippedItems(1.0)
    report = validate_file(
        file,
        skipped,
        read_options_from(images, images_from, ignore_field, image_limit, allow_truncated),
        decode_images=decode_images,
        progress=default_progress(),
    )
    print_message(
        f"{report.records} records, {report.turns} turns, {len(report.images)} images; "
        f"{report.multi_image} records with several images, {report.text_only} without; "
        f"{report.repeated_ids} share an id; invalid: {len(skipped.items)}"
    )
    print_message(*(f"{item.location}: {item.reason}" for item in skipped.items[:20]))
    skipped.max_fraction = max_bad_fraction
    try:
        skipped.finish(report.records, skipped_path(file, is_input=True))
    except OutputError as error:
        # The check itself succeeded, so a folder without write access is no failure.
        print_message(f"not listed: {error}")
        skipped.finish(report.records)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Data file, in a format of docs/data.md.")],
    record: Annotated[str, typer.Option(help="Id or number (from 0) of the record.")] = "0",
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder or a name on the Hugging Face Hub. \\[default: the packaged backbones]"
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Template of docs/templates.md. \\[default: the model's]")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print a line for each token.")] = False,
    images: Images = None,
    images_from: ImagesFrom = None,
    ignore_field: IgnoreField = None,
    offline: Offline = False,
) -> None:
    """Print a record as the model receives it: text, image slots, and supervised text in green or [[...]].

    [bold]Examples[/bold]

      caldera data inspect data.json --record 3

      caldera data inspect data.json --model runs/demo/model --tokens
    """
    from caldera.pipelines.inspect_record import inspect_record

    options = read_options_from(images, images_from, ignore_field)
    inspected = inspect_record(file, record, model, template, options)
    colored = stdout_console.color_system is not None and not stdout_console.no_color
    styles: dict[SegmentKind, str] = {
        "context": "dim",
        "supervised": "bold green",
        "image": "bold magenta",
    }
    for segment in inspected.segments:
        text = segment.text
        if segment.kind == "image":
            text = f"<{segment.text}: {segment.num_tokens} tokens>"
        elif segment.kind == "supervised" and not colored:
            text = f"[[{segment.text}]]"
        style = styles[segment.kind]
        stdout_console.print(text, style=style, end="", highlight=False, soft_wrap=True)
    stdout_console.print()
    counts = [(segment.kind, segment.num_tokens) for segment in inspected.segments]
    num_supervised = sum(count for kind, count in counts if kind == "supervised")
    print_message(
        f"record {inspected.id}, template {inspected.template}: {sum(count for _, count in counts)} tokens, "
        f"{num_supervised} of them supervised ({'green' if colored else 'in [[ ]]'})"
    )
    if tokens:
        table = Table("position", "id", "token", "supervised")
        for token in inspected.tokens:
            supervised = "yes" if token.supervised else ""
            table.add_row(str(token.position), str(token.id), repr(token.text), supervised)
        stdout_console.print(table)
