"""Model card: what is known of a model, written as the README.md of a repository on the Hub."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from caldera.datasets.origins import TrainingSet

CARD_FILE = "README.md"
HUB = "the Hugging Face Hub"
_UNKNOWN_LICENSE, _SEVERAL_LICENSES = "unknown", "licenses-of-the-parents"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """Model that another was made from."""

    role: str = ""
    """Part that it became: vision tower, language model ..."""

    name: str | None = None
    """Name as caldera's commands take it; None if it is not recorded."""

    home: str = ""
    """Where it is found under that name: the Hub or a package."""

    revision: str | None = None
    """Commit on the Hub, or version of the package."""

    sha256: str = ""
    license: str | None = None
    """Identifier in lower case, as the Hub writes it; None if it is unknown."""

    license_source: str = ""
    """Where the license was read."""

    languages: tuple[str, ...] = ()
    """Codes of the languages that its own card states."""

    @property
    def on_hub(self) -> bool:
        """True for a model on the Hub."""
        return self.home == HUB

    @property
    def license_text(self) -> str:
        """The license and where it was read."""
        source = f" ({self.license_source})" if self.license_source else ""
        return f"{self.license or 'unknown'}{source}"


@dataclass(frozen=True, slots=True)
class HubCard:
    """License and languages in the card of a model on the Hub."""

    license: str | None = None
    languages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CardStage:
    """Training stage."""

    name: str
    summary: str
    """Its settings in a line."""

    data: TrainingSet | None = None
    records: int | None = None
    """Number of records, where only that is known of the data."""

    @property
    def origins(self) -> str:
        """Origins of the data on the Hub, in a line."""
        origins = self.data.origins if self.data else ()
        return ", ".join(
            f"{origin.dataset}@{origin.revision}{':' if origin.file else ''}{origin.file}"
            for origin in origins
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CardEvaluation:
    """Scores on one benchmark."""

    title: str
    description: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Text of each row: its name, and a value for each column."""

    results: tuple[EvalResult, ...]
    """The same for the Hub's leaderboards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Facts about a model."""

    repo_id: str
    summary: str
    parents: Sequence[Parent] = ()
    stages: Sequence[CardStage] = ()
    data_note: str = ""
    commands: Sequence[str] = ()
    evaluations: Sequence[CardEvaluation] = ()
    tags: Sequence[str] = ()
    transformers_class: str | None = None
    """Class of transformers that loads the folder; None if there is none."""

    not_in_transformers: str | None = None
    """What transformers cannot express."""

    limits: Sequence[str] = field(default_factory=list)

    @property
    def license(self) -> str:
        """The license that all parents share; else the Hub's words for several or an unknown one."""
        licenses = {parent.license for parent in self.parents}
        if not licenses or None in licenses:
            return _UNKNOWN_LICENSE
        return str(*licenses) if len(licenses) == 1 else "other"

    @property
    def license_note(self) -> str:
        """Sentence about the parents' licenses."""
        if self.license == _UNKNOWN_LICENSE:
            return (
                "At least one license is unknown: find it out before you use or pass on this model."
            )
        if self.license == "other":
            return "The licenses of all parents apply."
        return "All parents have this license."


def render_card(facts: CardFacts) -> str:
    """Return the text of a model card: YAML metadata, then Markdown."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _table_cell
    template = (files("caldera.export") / "model_card.md.jinja").read_text("utf-8")
    return environment.from_string(template).render(facts=facts, metadata=_metadata(facts))


def _table_cell(value: object) -> str:
    """Return a text as one cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _metadata(facts: CardFacts) -> str:
    """Return the YAML block."""
    results = [result for evaluation in facts.evaluations for result in evaluation.results]
    origins = [origin for stage in facts.stages if stage.data for origin in stage.data.origins]
    data = ModelCardData(
        license=facts.license,
        license_name=_SEVERAL_LICENSES if facts.license == "other" else None,
        base_model=_distinct(parent.name for parent in facts.parents if parent.on_hub),
        datasets=_distinct(origin.dataset for origin in origins),
        language=_distinct(code for parent in facts.parents for code in parent.languages),
        pipeline_tag="image-text-to-text",
        library_name="transformers" if facts.transformers_class else "caldera",
        tags=list(facts.tags),
        model_name=facts.repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _distinct(values: Iterable[str | None]) -> list[str] | None:
    """Return the values that are not None, each once; None if there are none."""
    return [value for value in dict.fromkeys(values) if value is not None] or None
