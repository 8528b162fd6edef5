"""Publication of a model on the Hugging Face Hub: its folder is checked, and its card written, before an upload."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.errors import InputError, UsageError
from caldera.export.hub_upload import Upload, check_repo_id, read_hub_card, select_files
from caldera.export.model_card import CARD_FILE, render_card
from caldera.files.hub import parse_hub_name
from caldera.formats.model_paths import find_model
from caldera.pipelines.card_facts import gather_facts


@dataclass(frozen=True, slots=True)
class Publication:
    """Model that is ready to be uploaded."""

    card: str
    """Text of its card."""

    is_own_card: bool
    """Whether the folder has the card, as its user wrote it."""

    upload: Upload


def prepare_publication(path: str, repo_id: str, results: Sequence[Path] = ()) -> Publication:
    """Check a model, write its card, and select its files; nothing is sent.

    Args:
        path: A model folder, or the folder of a finished run.
        repo_id: Name on the Hub, ORG/NAME.
        results: Run folders of evaluations of the model; by default they are searched near it.

    Raises:
        UsageError: `repo_id` is no name.
        ModelFormatError: The model cannot be loaded, or a file is a link out of its folder.
        InputError: Results are of another model, or the user's card is invalid.
    """
    check_repo_id(repo_id)
    if parse_hub_name(path) is not None:
        raise UsageError(f"{path} is no folder; give a model folder, then the name: DIR {repo_id}")
    folder = find_model(path)
    card = render_card(gather_facts(folder, repo_id, results, read_hub_card))
    own_card = folder / CARD_FILE
    # The shell has emptied the file that the output is written to.
    if is_own_card := own_card.is_file() and own_card.stat().st_size > 0:
        card = _read_card(own_card)
    return Publication(card, is_own_card, select_files(folder, card))


def _read_card(file: Path) -> str:
    """Return a user's card; raise InputError if its metadata is no YAML."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        card = file.read_text("utf-8")
        ModelCard(card)
    except (OSError, ValueError, YAMLError) as error:
        raise InputError(
            f"{file} is no model card: {' '.join(str(error).split())}; correct or remove it"
        ) from None
    return card
