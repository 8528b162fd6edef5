"""Command `caldera doctor`: what is installed, what this machine has, and what blocks a command."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from caldera.cli.interruptions import MESSAGES
from caldera.cli.options import print_result, user_environment
from caldera.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from caldera.installation import Report


def doctor(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND]...",
            show_default=False,
            help="Command that should run, such as serve or data to-parquet.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for reports of faults.")
    ] = False,
) -> None:
    """Print what is installed and what this machine has. With a command, fail if something blocks it.

    No token or key is printed, and one request is sent to the Hugging Face Hub, without a token.

    [bold]Examples[/bold]

      caldera doctor

      caldera doctor serve

      caldera doctor --json > report.json
    """
    from caldera.installation import blocking_facts, describe_installation

    name = " ".join(command or ())
    if name and not _is_command(name):
        raise UnknownNameError("command", name, [*MESSAGES])
    report = describe_installation(user_environment())
    blocking = [fact.advice for fact in blocking_facts(report, name)] if name else []
    if as_json:
        sections = {section: [asdict(fact) for fact in facts] for section, facts in report.items()}
        print_result(json.dumps({"command": name, "blocked_by": blocking, **sections}, indent=1))
    else:
        if name:
            blocked = [f"caldera {name} cannot run:", *(f"  ! {advice}" for advice in blocking)]
            print_result(*(blocked if blocking else [f"nothing blocks caldera {name}"]), "")
        _print_report(report)
    if blocking:
        raise UsageError(f"caldera {name} cannot run: {'; '.join(blocking)}")


def _is_command(name: str) -> bool:
    """Return whether there is a command or a group of this name; each benchmark is a command of `evaluate`."""
    return name.split()[0] == "evaluate" or any(
        command == name or command.startswith(f"{name} ") for command in MESSAGES
    )


def _print_report(report: "Report") -> None:
    """Print each section with its facts and their advice."""
    for section, facts in report.items():
        print_result(section)
        width = max((len(fact.name) for fact in facts), default=0)
        for fact in facts:
            print_result(f"  {fact.name:{width}}  {fact.value}")
            if fact.advice:
                print_result(f"  {'':{width}}  ! {fact.advice}")
        if not facts:
            print_result("  none that matters is set")
