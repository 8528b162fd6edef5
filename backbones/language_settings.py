"""Settings of the language model's pretraining: its phases and its shape."""

from dataclasses import dataclass

from backbones.text_corpus import DescriptionMix

_ALL_KINDS = ("vqa", "context", "conversation", "detail", "reasoning")

_COMPARISONS = DescriptionMix(bags=1.0, captioned=0.5, drills=0.2, comparisons=1.2, quizzes=1.2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A phase of the training."""

    steps: int
    mix: DescriptionMix
    """Forms of the descriptions of scenes."""

    kinds: tuple[str, ...]
    """Kinds of the dialogues, the suffix of their id."""

    noise: float = 0.0
    """Standard deviation of the noise on the input of bags, relative to theirs; image tokens will be inexact too."""

    rows: int = 16
    """Rows of tokens per step."""

    learning_rate: float = 1.5e-3
    """Peak of the schedule."""

    restart_schedule: bool = False
    """Whether the learning rate schedule restarts with this phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguagePretraining:
    """Settings of the language model's pretraining."""

    scenes: int = 20_000
    seed: int = 8001
    """Seed of the scenes; different from the demo's and the vision tower's."""

    phases: tuple[Phase, ...] = (
        Phase(steps=500, mix=DescriptionMix(bags=0.5, captioned=0.25, drills=1.0), kinds=("vqa",)),
        Phase(
            steps=3000, mix=DescriptionMix(bags=0.7, captioned=0.35, drills=0.4), kinds=_ALL_KINDS
        ),
        Phase(
            steps=1700,
            mix=DescriptionMix(bags=0.85, captioned=0.4, drills=0.4),
            kinds=_ALL_KINDS,
            noise=0.3,
            restart_schedule=True,
        ),
        Phase(
            steps=220,
            mix=DescriptionMix(bags=1.0, captioned=0.3, comparisons=4.0, quizzes=1.5),
            kinds=("vqa",),
            rows=8,
            learning_rate=1.2e-3,
            restart_schedule=True,
        ),
        Phase(
            steps=350,
            mix=_COMPARISONS,
            kinds=_ALL_KINDS,
            rows=8,
            learning_rate=1.2e-3,
            restart_schedule=True,
        ),
        Phase(
            steps=150,
            mix=_COMPARISONS,
            kinds=_ALL_KINDS,
            noise=0.2,
            rows=8,
            learning_rate=1.2e-3,
        ),
        Phase(
            steps=150,
            mix=DescriptionMix(bags=0.95, captioned=1.2, drills=0.1, comparisons=1.0, quizzes=1.6),
            kinds=_ALL_KINDS,
            noise=0.2,
            rows=8,
            learning_rate=1e-3,
            restart_schedule=True,
        ),
    )
    row_length: int = 384
    weight_decay: float = 0.1
    warmup_steps: int = 200
    prompt_weight: float = 0.1
    """Weight of the loss on tokens outside answers."""

    reference_weight: float = 0.5
    """Weight of the loss on references."""

    vocabulary: int = 1024
    width: int = 192
    inner_width: int = 512
    layers: int = 4
    heads: int = 3
