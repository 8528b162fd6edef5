"""Model cards: everything in one is in a file, or it says that it is not known."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard

from caldera.errors import InputError
from caldera.export.model_card import CardFacts, HubCard, Parent, render_card
from caldera.files.atomic import to_plain_json
from caldera.formats.assemble import assemble
from caldera.formats.importing.import_model import import_model
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import save_model_folder
from caldera.formats.weight_names import read_weights
from caldera.model.bundle import LlavaBundle
from caldera.overrides import apply_overrides
from caldera.pipelines.card_facts import gather_facts
from caldera.progress import NoProgress
from caldera.recipes.registry import RECIPES
from caldera.training.hyperparameters import FINETUNE
from tests.published_run import ORIGIN, train_and_evaluate

NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])")
FIXED = ("95 % interval", "SHA-256", "0 to 10", "stage 1", "max_new_tokens=64", "[0, ", "shape[1]")
"""Numbers of the template itself."""


@pytest.fixture(scope="module")
def trained(
    vision_folder: Path, language_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose model was evaluated."""
    assistant = assemble(vision_folder, language_folder, seed=3)
    sources = {"vision": f"sight/tower@{'a' * 40}", "language": f"words/lm@{'b' * 40}"}
    card = assistant.card.model_copy(update={"sources": sources})
    return train_and_evaluate(replace(assistant, card=card), tmp_path_factory.mktemp("shared"))


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """The folder of the model, in a copy of the run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run" / "model"


def read_card(name: str, revision: str) -> HubCard:
    """Return the cards of the two parents on the Hub."""
    assert revision == {"sight/tower": "a" * 40, "words/lm": "b" * 40}[name]
    return {"sight/tower": HubCard("mit"), "words/lm": HubCard("apache-2.0", ("en", "zh"))}[name]


def metadata_of(card: str) -> dict[str, Any]:
    """Return the YAML block of a card, read by the Hub's own library."""
    metadata: dict[str, Any] = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    return metadata


def values_in(value: object) -> Iterator[float]:
    """Yield every number in JSON, lists and dictionaries counted, too."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        yield float(len(value))
        for item in value:
            yield from values_in(item)
    elif isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, str):
        yield from map(float, NUMBER.findall(value))


def test_every_number_of_a_card_is_in_a_file(model: Path) -> None:
    """At the precision that is printed; digests and commits are found letter by letter."""
    card = render_card(gather_facts(model, "workshop/assistant", (), read_card))
    files = [
        *model.glob("*.json"),
        *model.parent.glob("*.json"),
        *model.parent.glob("*/results.json"),
    ]
    texts = [file.read_text() for file in files]
    for digest in re.findall(r"\b[0-9a-f]{40,64}\b", card):
        assert any(digest in text for text in texts), digest
        card = card.replace(digest, "")
    for words in FIXED:
        card = card.replace(words, "")
    values = {value for text in texts for value in values_in(json.loads(text))}
    num_weights = sum(weight.nbytes // 4 for weight in read_weights(model).values())
    values.add(num_weights / 1e6)
    numbers = NUMBER.findall(card)
    assert len(numbers) > 30
    for number in numbers:
        precision = 0.5 * 10 ** -len(number.partition(".")[2])
        if "e" in number:
            precision = 0.0
        assert any(abs(float(number) - value) <= precision for value in values), number


def test_metadata_of_a_card_is_what_the_hub_expects(model: Path) -> None:
    """Parents, data sets, license, languages and scores are in the YAML block, which the Hub's own reader accepts."""
    data = metadata_of(render_card(gather_facts(model, "workshop/assistant", (), read_card)))
    assert data["base_model"] == ["sight/tower", "words/lm"]
    assert data["datasets"] == [ORIGIN.dataset]
    assert (data["license"], data["license_name"]) == ("other", "licenses-of-the-parents")
    assert data["language"] == ["en", "zh"]
    assert (data["pipeline_tag"], data["library_name"]) == ("image-text-to-text", "transformers")
    assert "caldera" in data["tags"]
    headline = json.loads((model.parent / "evaluation" / "results.json").read_text())["headline"]
    [index] = data["model-index"]
    assert index["name"] == "assistant"
    [metric] = index["results"][0]["metrics"]
    assert metric["value"] == round(headline["value"], 2)
    assert metric["args"]["low"] == headline["low"]
    assert metric["args"]["method"] == headline["method"]


def test_a_card_has_no_path_of_this_machine(model: Path, tmp_path: Path) -> None:
    """Names of files only: paths tell about their user, and nobody else has them."""
    card = render_card(gather_facts(model, "workshop/assistant", (), read_card))
    assert "Colors of photos" in card
    assert str(tmp_path) not in card
    assert "/home" not in card
    assert f"{ORIGIN.dataset}@{ORIGIN.revision}:{ORIGIN.file}" in card
    assert "| finetune | talks.json | 40 |" in card


def test_a_card_names_the_commands_of_its_training(model: Path) -> None:
    """They have the recorded names, and each setting that is not the default."""
    [command] = gather_facts(model, "workshop/assistant", (), read_card).commands
    assert command.startswith("caldera train finetune --model MODEL --data talks.json --out ")
    assert "--lora" not in command
    stage = json.loads((model.parent / "stage.json").read_text())
    assert to_plain_json(asdict(apply_overrides(FINETUNE, settings_in(command)))) == stage


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("demo", ("finetune.max_steps=2", "scenes.train=24", "finetune.betas=(0.9, 0.98)")),
        ("llava_15_7b_lora", ("finetune.lora.rank=64", "pretrain.aspect=pad", "aspect=pad")),
        ("llava_15_7b_lora", ("finetune.lora=none",)),
    ],
)
def test_the_command_of_a_recipe_has_every_change(
    assistant: LlavaBundle, tmp_path: Path, name: str, changes: tuple[str, ...]
) -> None:
    """Applied to the recipe, the settings in the command give those of the run."""
    recipe = apply_overrides(RECIPES[name](), changes)
    stored = to_plain_json(asdict(recipe))
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    stages = {stage.name: stored[stage.name] for stage in recipe.stages}
    card = assistant.card.model_copy(update={"stage": "finetune", "recipe": stages})
    save_model_folder(tmp_path / "model", replace(assistant, card=card))
    facts = gather_facts(tmp_path / "model", "workshop/assistant")
    [command] = facts.commands
    kind = "demo --recipe" if name == "demo" else "train recipe"
    assert command.startswith(f"caldera {kind} {name} ")
    assert apply_overrides(RECIPES[name](), settings_in(command)) == recipe
    assert any("drawings" in limit for limit in facts.limits) == (name == "demo")


def settings_in(command: str) -> list[str]:
    """Return the values of `--set` in a command, as a shell splits it."""
    words = shlex.split(command)
    return [value for option, value in pairwise(words) if option == "--set"]


def test_what_is_not_recorded_is_unknown(assistant: LlavaBundle, tmp_path: Path) -> None:
    """A model of unnamed parents, untrained and not evaluated: the card says so, and claims no license."""
    card = assistant.card.model_copy(update={"sources": {"vision": "my-tower"}})
    save_model_folder(tmp_path / "model", replace(assistant, card=card))
    text = render_card(gather_facts(tmp_path / "model", "workshop/assistant"))
    data = metadata_of(text)
    assert data["license"] == "unknown"
    assert not {"base_model", "datasets", "language", "model-index", "model_name"} & data.keys()
    assert "At least one license is unknown" in text
    assert "| vision tower | my-tower | a folder |" in text
    assert "| language model | not recorded |" in text
    assert "No training by caldera is recorded." in text
    assert "No evaluation of exactly these weights was found." in text
    assert "caldera train" not in text


def test_a_folder_of_transformers_records_no_parents(
    assistant: LlavaBundle, tmp_path: Path
) -> None:
    """Without caldera.json there are no names to give: the card says so."""
    save_model_folder(tmp_path / "model", assistant)
    (tmp_path / "model" / "caldera.json").unlink()
    text = render_card(gather_facts(tmp_path / "model", "workshop/assistant"))
    assert "The models that this one was made from, and their licenses, are not recorded." in text
    assert metadata_of(text)["license"] == "unknown"
    assert "LlavaForConditionalGeneration" in text


def test_a_license_is_unknown_where_a_parent_cannot_be_asked(model: Path) -> None:
    """Two parents have licenses, of which one cannot be read: the card has neither."""

    def read_one(name: str, _: str) -> HubCard:
        return HubCard("mit") if name == "sight/tower" else HubCard()

    text = render_card(gather_facts(model, "workshop/assistant", (), read_one))
    assert metadata_of(text)["license"] == "unknown"
    assert "| unknown |" in text


def test_licenses_of_all_parents_are_one_if_they_agree() -> None:
    """Two parents with the same license give it; two licenses are `other`."""

    def license_of(*licenses: str | None) -> str:
        parents = [Parent(role="part", license=name) for name in licenses]
        return CardFacts(repo_id="a/b", summary="", parents=parents).license

    assert license_of("mit", "mit") == "mit"
    assert license_of("mit", "apache-2.0") == "other"
    assert license_of("mit", None) == license_of() == "unknown"


def test_scores_of_other_weights_are_not_those_of_a_model(
    model: Path, assistant: LlavaBundle, tmp_path: Path
) -> None:
    """They are left out where they are found, and rejected where they are given."""
    other = tmp_path / "elsewhere" / "other"
    save_model_folder(other, assistant)
    evaluation = model.parent / "evaluation"
    shutil.copytree(evaluation, tmp_path / "elsewhere" / "evaluation")
    assert gather_facts(other, "workshop/other").evaluations == ()
    with pytest.raises(InputError, match="has no scores of these weights"):
        gather_facts(other, "workshop/other", [evaluation])
    with pytest.raises(
        InputError, match=r"holds no results\.json of an evaluation; check --results"
    ):
        gather_facts(model, "workshop/assistant", [model])
    (model / "README.md").write_text("A card that was added after the evaluation.")
    assert len(gather_facts(model, "workshop/assistant", [evaluation]).evaluations) == 1


def test_invalid_results_are_not_shown(model: Path) -> None:
    """A run with too many failures has no meaning."""
    file = model.parent / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    file.write_text(json.dumps({**results, "valid": False}))
    assert gather_facts(model, "workshop/assistant").evaluations == ()
    with pytest.raises(InputError, match="too many items failed"):
        gather_facts(model, "workshop/assistant", [file.parent])


def test_the_code_of_a_card_runs(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers loads the folder by the lines of the card, and answers."""
    text = render_card(gather_facts(model, "workshop/assistant", (), read_card))
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.copy(photos / "1.png", tmp_path / "dog.jpg")
    (tmp_path / "workshop").mkdir()
    model.rename(tmp_path / "workshop" / "assistant")
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), variables)
    assert len(variables["answer"]) > 0


def test_a_model_that_transformers_cannot_load_has_no_such_code(
    vision_folder: Path, language_folder: Path, tmp_path: Path
) -> None:
    """The card says why, and names caldera as the library."""
    request = ImportRequest(vision=vision_folder, language=language_folder, projector="linear")
    import_model(request, tmp_path / "model", NoProgress())
    text = render_card(gather_facts(tmp_path / "model", "workshop/linear"))
    assert (
        "transformers cannot load this model, as its classes cannot express a single linear projector"
        in text
    )
    assert "```python" not in text
    assert metadata_of(text)["library_name"] == "caldera"


def test_names_with_marks_of_tables_and_yaml_stay_text(model: Path) -> None:
    """A title with a bar, a colon and quotes breaks neither the tables nor the metadata."""
    file = model.parent / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    title = 'Mine | "own": [1]\n- license: mit'
    file.write_text(json.dumps({**results, "title": title, "measures": "a | b"}))
    text = render_card(gather_facts(model, "workshop/assistant", (), read_card))
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["license"] == "other"
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == " ".join(title.split())
