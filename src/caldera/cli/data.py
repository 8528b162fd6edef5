"""Generate, check, inspect."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from caldera.cli.options import IgnoreField, Images, MaxBad, stderr_console, stdout_console
from caldera.errors import OutputError

app = typer.Typer(no_args_is_help=True, help="Write, check and look at instruction data.")


Teacher = Annotated[
    str, typer.Option(help="Who writes: scripted, openai (any compatible server) or replay.")
]
Kinds = Annotated[
    str | None,
    typer.Option(
        help="Kinds, with shares if you like: conversation,detail:0.5. Of: caption, conversation, detail, "
        "reasoning, vqa, context. Without shares a language model keeps LLaVA's mix, 58:23:77. "
        "\\[default: conversation,detail,reasoning,context; for pairs: caption]"
    ),
]


Model = Annotated[str, typer.Option(help="Name of the teacher's model, for --teacher openai.")]
BaseUrl = Annotated[
    str,
    typer.Option(
        help="Address of the teacher: OpenAI, vLLM, llama.cpp, Ollama, caldera ... \\[default: OpenAI]"
    ),
]
KeyVariable = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Environment variable that holds the key; it is written nowhere."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Your own prompts: KIND/system.txt and examples."),
]
Language = Annotated[str, typer.Option(help="Of the shipped prompts: english or chinese.")]
Price = Annotated[
    str | None,
    typer.Option(
        metavar="PROMPT,REPLY", help="Money for a million tokens each, such as 0.15,0.60."
    ),
]
Unpriced = Annotated[bool, typer.Option("--unpriced", help="Count no money.")]
MaxCost = Annotated[
    float | None, typer.Option(min=0.0, help="Most money, over all starts of the run.")
]
MaxRequests = Annotated[
    int | None, typer.Option(min=1, help="Most requests, over all starts of the run.")
]
AllowMixed = Annotated[
    bool,
    typer.Option("--allow-mixed", help="Go on with other prompts, model or annotations."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only tell what would be sent, and its cost.")
]
Recorded = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="For --teacher replay: the run whose replies are used."),
]
SetSending = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="How a teacher is asked: concurrency, requests_per_minute, tokens_per_minute, temperature, max_tokens, "
        "timeout, retries, repairs ...; many times.",
    ),
]


def llm_teacher_from(
    teacher: str,
    key_variable: str,
    price: str | None,
    settings: list[str] | None,
    **rest: Any,  # noqa: ANN401 - fields of Teaching, which checks them
) -> Any:  # noqa: ANN401 - its type is heavy to import
    """Return what is ordered of a language model, None where the teacher is none; the key is read here.

    Raises:
        UsageError: A setting or the price cannot be.
    """
    from pydantic import SecretStr

    from caldera.instructions.llm_teacher.teacher import LLM_CLIENTS, LLMTeacherConfig
    from caldera.llm_client.budget import parse_price
    from caldera.llm_client.client import RequestConfig
    from caldera.llm_client.openai_client import OPENAI_URL
    from caldera.overrides import apply_overrides

    if teacher not in LLM_CLIENTS:
        return None
    key = os.environ.get(key_variable, "").strip()
    rest["base_url"] = rest["base_url"] or OPENAI_URL
    return LLMTeacherConfig(
        teacher=teacher,
        key=SecretStr(key) if key else None,
        price=parse_price(price) if price else None,
        request_config=apply_overrides(RequestConfig(), settings or ()),
        **rest,
    )


def print_estimate(order: Any, teaching: Any) -> None:  # noqa: ANN401 - their types are heavy to import
    """Print what a run would send.

    Raises:
        UsageError: The teacher is no language model.
    """
    from caldera.errors import UsageError
    from caldera.instructions.generate import estimate_data_cost

    if teaching is None:
        raise UsageError(
            "--dry-run tells what a language model would be sent; give --teacher openai"
        )
    planned = estimate_data_cost(order, teaching)
    table = Table("kind", "dialogues", title="nothing was sent")
    for kind, count in planned.dialogues.items():
        table.add_row(kind, str(count))
    stderr_console.print(table)
    total = planned.dialogues.total()
    lines = [
        f"requests: {total}, and up to {total * teaching.request_config.max_repairs} more for repairs",
        f"tokens: about {planned.prompt_tokens} of prompts, about {planned.reply_tokens} of replies "
        f"(at most {planned.max_reply_tokens})",
    ]
    if planned.cost is None:
        lines.append("cost: not known; give --price PROMPT,REPLY")
    else:
        lines.append(
            f"cost: about {planned.cost:.4f}, at most {planned.max_cost:.4f} without repairs"
        )
    for line in lines:
        stderr_console.print(line, markup=False, soft_wrap=True)


@app.command()
def generate(
    source: Annotated[str, typer.Argument(help="coco (a folder) or pairs (a file).")],
    path: Annotated[Path, typer.Argument(help="The annotations.")],
    out_file: Annotated[Path, typer.Option("--out", help="Data file, .json or .jsonl.")],
    teacher: Teacher = "scripted",
    kinds: Kinds = None,
    split: Annotated[str | None, typer.Option(help="COCO split, such as train2017.")] = None,
    images: Images = None,
    seed: Annotated[int, typer.Option(help="Of the choice of words.")] = 0,
    max_bad_fraction: MaxBad = 0.0,
    ignore_field: IgnoreField = None,
    model: Model = "",
    base_url: BaseUrl = "",
    api_key_env: KeyVariable = "OPENAI_API_KEY",
    prompts: Prompts = None,
    language: Language = "english",
    price: Price = None,
    no_price: Unpriced = False,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    allow_changed_run: AllowMixed = False,
    dry_run: DryRun = False,
    replay_from: Recorded = None,
    settings: SetSending = None,
) -> None:
    """Write instruction data about annotated images, in LLaVA's JSON.

    [bold]Examples[/bold]

      caldera data generate coco photos/ --out data.json

      caldera data generate pairs captions.csv --out pretrain.json

      caldera data generate coco photos/ --teacher openai --base-url http://127.0.0.1:8000/v1 --model qwen --price 0,0
      --out data.json
    """
    from caldera.annotations.registry import SourceOptions
    from caldera.instructions.generate import GenerateConfig

    teaching = llm_teacher_from(
        teacher, api_key_env, price, settings,
        base_url=base_url, model=model, prompts=prompts, language=language, no_price=no_price, max_cost=max_cost,
        max_requests=max_requests, allow_changed_run=allow_changed_run, replay_from=replay_from,
    )  # fmt: skip
    read = SourceOptions(split=split, images=images, ignore_fields=frozenset(ignore_field or ()))
    order = GenerateConfig(
        source=source, path=path, options=read, teacher=teacher, llm_teacher=teaching, kinds=kinds, seed=seed,
        max_bad_fraction=max_bad_fraction,
    )  # fmt: skip
    if dry_run:
        print_estimate(order, teaching)
    else:
        _generate(order, out_file)


def _generate(order: Any, out_file: Path) -> None:  # noqa: ANN401 - its type is heavy to import
    """Write a data file, and tell what is in it and what is not."""
    from caldera.instructions.generate import generate_data
    from caldera.progress import default_progress

    written = generate_data(order, out_file, default_progress())
    table = Table("kind", "dialogues", title=f"{out_file}")
    for kind, count in written.by_kind.items():
        table.add_row(kind, str(count))
    stderr_console.print(table)
    for reason, count in written.rejected.most_common():
        stderr_console.print(f"not written: {count} x {reason}", markup=False, soft_wrap=True)
    if order.llm_teacher and written.rejected:
        lists = out_file.with_suffix(".run")
        told = f"each of them: {lists}/rejected.jsonl, {lists}/failed.jsonl"
        stderr_console.print(told, markup=False, soft_wrap=True)
    stderr_console.print(f"next: caldera data check {out_file}", markup=False, soft_wrap=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Data file, .json or .jsonl.")],
    images: Images = None,
    decode_images: Annotated[
        bool, typer.Option("--open/--no-open", help="Decode every image, or only find it.")
    ] = True,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBad = 0.0,
) -> None:
    """Check every record and every image of a data file; exit code 3 if something is wrong.

    [bold]Examples[/bold]

      caldera data check data.json

      caldera data check mix665k.json --images playground/data --ignore-field model
    """
    from caldera.datasets.validation import validate_file
    from caldera.files.skipped import SkippedItems
    from caldera.progress import default_progress

    findings = validate_file(
        file,
        images or file.parent,
        open_images=decode_images,
        ignore=frozenset(ignore_field or ()),
        progress=default_progress(),
    )
    stderr_console.print(
        f"{findings.records} records, {findings.turns} turns, {len(findings.images)} images; "
        f"{findings.multi_image} records show several, {findings.text_only} none; {findings.repeated_ids} share an id; "
        f"bad: {len(findings.bad)}",
        soft_wrap=True,
    )
    if findings.bad:
        for fault in findings.bad[:20]:
            stderr_console.print(f"{fault.location}: {fault.reason}", markup=False, soft_wrap=True)
        bad_file = file.with_suffix(".bad.jsonl")
        try:
            SkippedItems(1.0, findings.bad).write(bad_file)
            stderr_console.print(
                f"all of them are listed in {bad_file}", markup=False, soft_wrap=True
            )
        except OutputError as error:  # what was asked for is the check
            stderr_console.print(f"not listed: {error}", markup=False, soft_wrap=True)
        SkippedItems(max_bad_fraction, findings.bad).raise_if_over_limit(findings.records)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Data file, .json or .jsonl.")],
    record: Annotated[str, typer.Option(help="Id or number (from 0) of the record.")] = "0",
    model: Annotated[
        Path | None, typer.Option(help="Model folder. \\[default: the shipped backbones]")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="A name of docs/templates.md. \\[default: the model's]")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show a line for each token.")] = False,
    images: Images = None,
    ignore_field: IgnoreField = None,
) -> None:
    """Show what the model sees of one record: text, image slots, and what it learns to say, in green or [[...]].

    [bold]Examples[/bold]

      caldera data inspect data.json --record 3

      caldera data inspect data.json --model runs/demo/model --tokens
    """
    from caldera.pipelines.inspect_record import inspect_record

    surplus = frozenset(ignore_field or ())
    seen = inspect_record(file, record, model, template, surplus, images)
    colored = stdout_console.color_system is not None and not stdout_console.no_color
    styles = {"given": "dim", "learned": "bold green", "image": "bold magenta"}
    for stretch in seen.stretches:
        shown = stretch.text
        if stretch.look == "image":
            shown = f"<{stretch.text}: {stretch.tokens} tokens>"
        elif stretch.look == "learned" and not colored:
            shown = f"[[{stretch.text}]]"
        stdout_console.print(
            shown, style=styles[stretch.look], end="", markup=False, highlight=False, soft_wrap=True
        )
    stdout_console.print()
    learned = sum(one.tokens for one in seen.stretches if one.look == "learned")
    stderr_console.print(
        f"record {seen.id}, template {seen.template}: {sum(one.tokens for one in seen.stretches)} tokens, "
        f"{learned} of them learned ({'green' if colored else 'in [[ ]]'})",
        markup=False,
        soft_wrap=True,
    )
    if tokens:
        table = Table("position", "id", "token", "learned")
        for row in seen.tokens:
            table.add_row(
                str(row.position), str(row.id), repr(row.text), "yes" if row.learned else ""
            )
        stdout_console.print(table)
