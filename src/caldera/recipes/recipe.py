"""What every recipe says: which parts are joined, and what the two stages do with them.

Where the data come from is said by its two kinds: a `SceneRecipe` draws and writes them, a `PaperRecipe` names what its
user must bring.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from caldera.batches.images import ASPECTS, ImageAspect
from caldera.errors import UsageError, did_you_mean
from caldera.model.projector import PROJECTORS
from caldera.storage import to_plain_json, write_json
from caldera.training.stage import Stage


def raise_if_any(what: str, faults: Iterable[str]) -> None:
    """Raise UsageError naming all faults, if there are any."""
    if told := "; ".join(faults):
        raise UsageError(f"{what}: {told}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One run, whole."""

    name: str
    vision: str
    """A shipped backbone or a folder in transformers' format; in a paper's recipe, what the hub calls the tower that
    its user fetches."""

    language: str
    """The same of the language model."""

    projector: str = "mlp2x_gelu"
    select_layer: int = -2
    """Hidden state of the vision tower that is projected."""

    aspect: ImageAspect = "square"
    """How an image that is not square is shown, until a stage says otherwise."""

    pretrain: Stage
    finetune: Stage
    seed: int = 0
    """Of the projector, and of the wording of data and questions where they are written here."""

    def __post_init__(self) -> None:
        """Check the names; the groups of settings check themselves.

        Raises:
            UsageError: No table holds one.
        """
        names = {
            "projector": (self.projector, PROJECTORS),
            "aspect": (self.aspect, ASPECTS),
        }
        faults = [
            f"no {what} is called {name!r}; {did_you_mean(name, known)}"
            for what, (name, known) in names.items()
            if name not in known
        ]
        raise_if_any(f"recipe {self.name!r}", faults)

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """Both, in order."""
        return self.pretrain, self.finetune


def check_or_write_recipe(out: Path, recipe: Recipe) -> None:
    """Note a recipe in its run's folder.

    Raises:
        UsageError: Another one's run is there.
    """
    file = out / "recipe.json"
    said = to_plain_json(asdict(recipe))
    if not file.is_file():
        write_json(file, said)
    elif json.loads(file.read_text()) != said:
        raise UsageError(
            f"{out} holds a run with other settings; choose another --out, or remove it to start anew"
        )
