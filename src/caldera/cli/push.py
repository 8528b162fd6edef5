"""Command `caldera push`: share a model on the Hugging Face Hub."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from caldera.cli.options import print_message, print_result, stderr_console
from caldera.errors import UsageError

if TYPE_CHECKING:
    from caldera.export.hub_upload import Target, Upload


def push(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Model folder, or that of a run.")],
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run folder of an evaluation of the model. Repeatable. \\[default: those in runs/evaluate and next "
            "to the model]"
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Create a repository that nobody else sees.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files; send nothing.")
    ] = False,
) -> None:
    """Upload a model with a model card, which is printed first, to the Hugging Face Hub.

    The token is HF_TOKEN or that of `hf auth login`. A README.md in the folder is used as the card.

    [bold]Examples[/bold]

      caldera push runs/demo ORG/scenes-assistant --dry-run

      caldera push runs/two ORG/product-assistant --private

      caldera push runs/two ORG/product-assistant --dry-run > runs/two/model/README.md
    """
    from caldera.export.hub_upload import find_target, upload_files
    from caldera.pipelines.publishing import prepare_publication
    from caldera.progress import default_progress

    publication = prepare_publication(folder, name, results or ())
    print_result(publication.card)
    if publication.is_own_card:
        print_message("card: the README.md of the folder, unchanged")
    _print_upload(publication.upload)
    if dry_run:
        print_message("nothing was sent (--dry-run)")
        return
    if not yes and not sys.stdin.isatty():
        raise UsageError(
            "nothing was sent: there is no terminal to confirm on; check the above and add --yes"
        )
    target = find_target(name, private=private)
    _print_target(target, publication.upload)
    if not yes and not typer.confirm(f"Upload to {name}?", err=True):
        print_message("nothing was sent")
        return
    message = "Upload model with caldera"
    url = upload_files(publication.upload, target, message, default_progress())
    print_message(f"next: caldera chat {name}")
    print_result(url)


def _print_upload(upload: "Upload") -> None:
    """Print the files of an upload with their sizes, and what is not uploaded."""
    table = Table("file", "MB", title="to upload")
    for file in upload.files:
        table.add_row(file.name, f"{file.size / 1e6:.3f}")
    stderr_console.print(table)
    for name, reason in upload.left_out.items():
        print_message(f"not uploaded: {name} ({reason})")
    print_message(f"{len(upload.files)} files, {upload.size / 1e6:.3f} MB")


def _print_target(target: "Target", upload: "Upload") -> None:
    """Print what an upload does to its repository."""
    visibility = "private" if target.private else "public: anybody sees it"
    if target.commit is None:
        print_message(f"{target.repo_id} is new, and {visibility}")
        return
    print_message(
        f"{target.repo_id} exists ({visibility}); a commit is added to {target.commit[:12]}"
    )
    if replaced := sorted(target.files & {file.name for file in upload.files}):
        print_message(f"replaced if they differ: {', '.join(replaced)}")
    if removed := target.removed_by(upload):
        print_message(f"removed, as the new model does not have them: {', '.join(removed)}")
