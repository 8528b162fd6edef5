"""Recipes: the complete settings of a run.

A `SceneRecipe` generates its data; a `PaperRecipe` names the data and towers that its user provides.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caldera.errors import UsageError, check_ranges, did_you_mean, range_errors
from caldera.files.atomic import to_plain_json, write_json
from caldera.files.fingerprint import describe_changes
from caldera.images.anyres import ASPECTS, ImageAspect
from caldera.instructions.dialogues import KINDS, Kind
from caldera.overrides import with_current_names
from caldera.training.hyperparameters import Stage, deciding_settings

_PROJECTORS = ("linear", "mlp2x_gelu")
"""Projectors of the papers."""

TRAINED = ("*/checkpoints/*", "*/model")
"""Patterns of what training leaves in a run folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Settings of a run with both stages."""

    name: str
    vision: str
    """A packaged backbone or a folder in transformers' format; in a paper's recipe, the hub name of the tower."""

    language: str
    """The language model, named in the same way."""

    projector: str = "mlp2x_gelu"
    vision_feature_layer: int = -2
    """Hidden state of the vision tower that is projected."""

    aspect: ImageAspect = "square"
    """How images that are not square are prepared, unless a stage sets it."""

    pretrain: Stage
    finetune: Stage
    seed: int = 0
    """Seed of the projector, and of the wording of generated data and questions."""

    def __post_init__(self) -> None:
        """Check the names; the groups of settings check themselves."""
        choices = {"projector": (self.projector, _PROJECTORS), "aspect": (self.aspect, ASPECTS)}
        if self.projector not in _PROJECTORS:
            # Only for another name, as the table needs torch, which takes seconds to import.
            from caldera.model.projector import PROJECTORS

            choices["projector"] = (self.projector, tuple(PROJECTORS))
        errors = [
            f"no {subject} is called {name!r}; {did_you_mean(name, valid_names)}"
            for subject, (name, valid_names) in choices.items()
            if name not in valid_names
        ]
        if errors:
            raise UsageError(f"recipe {self.name!r}: {'; '.join(errors)}")

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """Both stages, in order."""
        return self.pretrain, self.finetune


def check_recipe(out: Path, recipe: Recipe, results: Sequence[str] = TRAINED) -> None:
    """Check that the run in a folder has the settings of a recipe, unless it failed before it had a result.

    Settings that do not change the steps of a stage may differ.

    Args:
        out: Folder of the run, which need not exist.
        recipe: The recipe.
        results: Patterns of the files and folders that depend on the settings and that a run does not write anew.

    Raises:
        UsageError: The folder holds a run of another recipe.
    """
    file = out / "recipe.json"
    if not file.is_file() or not any(path for name in results for path in out.glob(name)):
        return
    stored = with_current_names(json.loads(file.read_text()))
    if changes := describe_changes(_deciding(stored), _deciding(to_plain_json(asdict(recipe)))):
        raise UsageError(
            f"{out} holds a run with other settings ({changes}); choose another --out, or remove it to start anew"
        )


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Write a recipe to its run folder, once nothing but the first step can fail."""
    write_json(out / "recipe.json", to_plain_json(asdict(recipe)))


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a result: not the texts about where to get a data set, whose wording changes."""
    return {
        name: deciding_settings({key: value[key] for key in value if key != "source"})
        if isinstance(value, dict)
        else value
        for name, value in settings.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneCounts:
    """Number of drawn scenes."""

    train: int
    held_out: int
    """Scenes for evaluation only; every second one has a pair of objects that no training scene has together."""

    seed: int = 11
    """Seed of the scenes; those of the backbones have others."""

    def __post_init__(self) -> None:
        """Check that there are scenes of both kinds."""
        check_ranges(self, {"train": "[1, inf]", "held_out": "[1, inf]"}, "scenes")


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionMix:
    """Dialogues of each kind per image; 0.3 means for three images in ten."""

    caption: float = 0.0
    conversation: float = 0.0
    detail: float = 0.0
    reasoning: float = 0.0
    vqa: float = 0.0
    context: float = 0.0

    def __post_init__(self) -> None:
        """Check that every share is in [0, 1] and one of them is positive."""
        errors = list(range_errors(self, dict.fromkeys(KINDS, "[0, 1]")))
        if not any(getattr(self, kind) for kind in KINDS):
            errors.append("every kind is 0; give one of them a share")
        if errors:
            raise UsageError(f"mix: {'; '.join(errors)}")

    @property
    def shares(self) -> dict[Kind, float]:
        """Kinds with a positive share."""
        shares: dict[Kind, float] = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: share for kind, share in shares.items() if share > 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionCounts:
    """Number of questions about the held-out scenes."""

    per_image: int = 8
    context_per_image: int = 2
    captioned: int = 100
    """Held-out scenes to caption."""

    def __post_init__(self) -> None:
        """Check that there is something to ask."""
        intervals = {
            "per_image": "[1, inf]",
            "captioned": "[1, inf]",
            "context_per_image": "[0, inf]",
        }
        check_ranges(self, intervals, "questions")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneRecipe(Recipe):
    """Recipe whose data and questions are generated from drawn scenes."""

    scenes: SceneCounts
    pretrain_mix: InstructionMix
    finetune_mix: InstructionMix
    questions: QuestionCounts


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoRecipe(Recipe):
    """Recipe whose data and questions are written from a user's labeled photos."""

    split: str | None = None
    """Split of the photos to train on, a folder above the class folders; None is `train` where there are splits."""

    hold_out: str | None = None
    """Number of photos to hold out, or the split; None is the test split where there are splits, else 300 photos."""

    phrases: str | None = None
    """JSON file of noun phrases by class, for classes whose names do not fit into a sentence."""

    finetune_kinds: str = "naming,presence"
    """Kinds of questions of stage 2; stage 1 has captions."""
