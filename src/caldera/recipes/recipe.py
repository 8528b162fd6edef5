"""Everything needed to run again what was run once, in the order of the data's way."""

from dataclasses import dataclass

from caldera.batches.pictures import Aspect
from caldera.instructions.teacher import KINDS, Kind
from caldera.training.stage import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """How many scenes are drawn."""

    train: int
    held_out: int
    """Scenes that are only asked about; in every second one stands a pair that no training scene has together."""

    seed: int = 11
    """The backbones' scenes have other seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """Dialogues of each kind for a picture; 0.3 means for three pictures in ten."""

    caption: float = 0.0
    conversation: float = 0.0
    detail: float = 0.0
    reasoning: float = 0.0
    vqa: float = 0.0
    context: float = 0.0

    @property
    def shares(self) -> dict[Kind, float]:
        """The kinds that are written, with their shares."""
        shares: dict[Kind, float] = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: share for kind, share in shares.items() if share > 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What the trained assistant is asked about each held-out scene."""

    per_picture: int = 8
    context_per_picture: int = 2
    captioned: int = 100
    """Held-out scenes that it captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One run, whole."""

    name: str
    scenes: Scenes
    pretrain_mix: Mix
    finetune_mix: Mix
    vision: str
    """A shipped backbone, or a folder in transformers' format."""

    language: str
    """A shipped backbone, or a folder in transformers' format."""

    projector: str = "mlp2x_gelu"
    aspect: Aspect = "square"
    pretrain: Stage
    finetune: Stage
    questions: Questions
    seed: int = 0
    """Of the wording of data and questions, and of the projector."""
