"""Recipe, SceneRecipe.

Where the data come from is said by its two kinds: a `SceneRecipe` draws and writes them, a `PaperRecipe` names what its
user must bring.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from caldera.errors import UsageError, did_you_mean
from caldera.files.atomic import to_plain_json, write_json
from caldera.files.fingerprint import describe_changes
from caldera.images.processor import ASPECTS, ImageAspect
from caldera.instructions.dialogues import KINDS, Kind
from caldera.model.projector import PROJECTORS
from caldera.overrides import with_current_names
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
    settings = to_plain_json(asdict(recipe))
    if not file.is_file():
        write_json(file, settings)
        return
    if changes := describe_changes(with_current_names(json.loads(file.read_text())), settings):
        raise UsageError(
            f"{out} holds a run with other settings ({changes}); choose another --out, or remove it to start anew"
        )


def _below_minimum(counts: dict[str, int], least: int) -> list[str]:
    """Say which counts are below the least that makes sense."""
    return [
        f"{name} is {count}; it must be at least {least}"
        for name, count in counts.items()
        if count < least
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneCounts:
    """How many scenes are drawn."""

    train: int
    held_out: int
    """Scenes that are only asked about; in every second one stands a pair that no training scene has together."""

    seed: int = 11
    """The backbones' scenes have other seeds."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            UsageError: There is nothing to learn from or to ask about.
        """
        raise_if_any("scenes", _below_minimum({"train": self.train, "held_out": self.held_out}, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionMix:
    """Dialogues of each kind for an image; 0.3 means for three images in ten."""

    caption: float = 0.0
    conversation: float = 0.0
    detail: float = 0.0
    reasoning: float = 0.0
    vqa: float = 0.0
    context: float = 0.0

    def __post_init__(self) -> None:
        """Check every share.

        Raises:
            UsageError: One is no share, or all are 0.
        """
        shares = {kind: getattr(self, kind) for kind in KINDS}
        faults = [
            f"{kind} is {share}; it must lie in [0, 1]"
            for kind, share in shares.items()
            if not 0 <= share <= 1
        ]
        if not any(shares.values()):
            faults.append("every kind is 0; give one of them a share")
        raise_if_any("mix", faults)

    @property
    def shares(self) -> dict[Kind, float]:
        """The kinds that are written, with their shares."""
        shares: dict[Kind, float] = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: share for kind, share in shares.items() if share > 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionCounts:
    """What the trained assistant is asked about each held-out scene."""

    per_image: int = 8
    context_per_image: int = 2
    captioned: int = 100
    """Held-out scenes that it captions."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            UsageError: Nothing would be asked, or less than nothing.
        """
        counts = {"per_image": self.per_image, "captioned": self.captioned}
        several = {"context_per_image": self.context_per_image}
        raise_if_any("questions", [*_below_minimum(counts, 1), *_below_minimum(several, 0)])


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneRecipe(Recipe):
    """A recipe whose data are drawn, written and asked about here."""

    scenes: SceneCounts
    pretrain_mix: InstructionMix
    finetune_mix: InstructionMix
    questions: QuestionCounts
