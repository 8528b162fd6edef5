"""Options of `caldera data generate` for a language model as teacher, and what they come to."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from caldera.cli.options import stderr_console

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

    from caldera.instructions.asking.budget import parse_price
    from caldera.instructions.asking.endpoint import RequestConfig
    from caldera.instructions.asking.openai_endpoint import OPENAI_URL
    from caldera.instructions.asking.teaching import LLM_CLIENTS, LLMTeacherConfig
    from caldera.settings import apply_overrides

    if teacher not in LLM_CLIENTS:
        return None
    key = os.environ.get(key_variable, "").strip()
    rest["base_url"] = rest["base_url"] or OPENAI_URL
    return LLMTeacherConfig(
        teacher=teacher,
        key=SecretStr(key) if key else None,
        price=parse_price(price) if price else None,
        sending=apply_overrides(RequestConfig(), settings or ()),
        **rest,
    )


def print_estimate(order: Any, teaching: Any) -> None:  # noqa: ANN401 - their types are heavy to import
    """Print what a run would send.

    Raises:
        UsageError: The teacher is no language model.
    """
    from caldera.errors import UsageError
    from caldera.instructions.from_files import estimate_data_cost

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
        f"requests: {total}, and up to {total * teaching.sending.repairs} more for repairs",
        f"tokens: about {planned.prompt_tokens} of prompts, about {planned.reply_tokens} of replies "
        f"(at most {planned.most_reply_tokens})",
    ]
    if planned.cost is None:
        lines.append("cost: not known; give --price PROMPT,REPLY")
    else:
        lines.append(
            f"cost: about {planned.cost:.4f}, at most {planned.most_cost:.4f} without repairs"
        )
    for line in lines:
        stderr_console.print(line, markup=False, soft_wrap=True)
