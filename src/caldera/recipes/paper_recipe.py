"""A recipe of a paper: its numbers as values, and its data and towers described, as its user has to bring them."""

from dataclasses import dataclass

from caldera.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """A data set that is needed; nothing downloads it."""

    name: str
    rows: int
    """Records, as the paper counts them."""

    file: str
    """What the file is called where people get it; LLaVA's JSON."""

    images: tuple[str, ...]
    """Folders that have to lie below the one given as --images."""

    source: str
    """Where people get it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRecipe(Recipe):
    """A recipe whose data and towers its user brings."""

    pretrain_data: DatasetInfo
    finetune_data: DatasetInfo
