"""The papers' recipes: their numbers are the cited ones, and each runs both stages at tiny size."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caldera.conversation import Conversation, ImageRef, Turn, write_conversations
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import InputError, UsageError
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder
from caldera.overrides import apply_overrides
from caldera.pipelines.paper_run import UserInputs, run_paper_recipe
from caldera.progress import NoProgress, Progress
from caldera.recipes.citations import CITATIONS
from caldera.recipes.describe import cited_field_names, parameters_of, recipe_fields
from caldera.recipes.papers import PaperRecipe
from caldera.recipes.recipe import Recipe
from caldera.recipes.registry import (
    PAPER_RECIPES,
    find_paper_recipe,
    find_recipe,
    find_scene_recipe,
)
from caldera.recipes.towers import HUB_TOWERS
from caldera.templates.template import TEMPLATES
from caldera.training.metrics_log import read_metrics

MEANS = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())

TINY = (
    "pretrain.batch_size=4", "pretrain.micro_batch_size=2", "pretrain.max_steps=1", "pretrain.learning_rate=1e-2",
    "finetune.batch_size=4", "finetune.micro_batch_size=2", "finetune.max_steps=2", "finetune.learning_rate=1e-2",
    "finetune.save_every=1",
)  # fmt: skip
"""Settings under which a paper's recipe takes a second."""


def differences(recipe: Recipe) -> list[str]:
    """Name the fields in which a recipe says something else than is cited of it."""
    return [setting.name for setting in recipe_fields(recipe) if setting.differs]


def test_the_table_is_the_papers() -> None:
    """Eight recipes, each under its own name, each cited, and each named tower of a known shape."""
    assert len(PAPER_RECIPES) == 8
    assert list(CITATIONS) == list(PAPER_RECIPES)
    for name in PAPER_RECIPES:
        recipe = find_paper_recipe(name)
        assert recipe.name == name
        assert {recipe.vision, recipe.language} <= HUB_TOWERS.keys()


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_every_number_is_the_cited_one(name: str) -> None:
    """All that has to be cited is, and nothing else; and no field says anything else than its citation."""
    recipe = find_paper_recipe(name)
    assert sorted(CITATIONS[name].fields) == sorted(cited_field_names(recipe))
    assert len(CITATIONS[name].fields) >= 36
    unwritten = [  # stands in for until the table has it; papers.py must then name it
        field
        for field, cited in CITATIONS[name].fields.items()
        if field.endswith(".template") and cited.value not in TEMPLATES
    ]
    assert differences(recipe) == unwritten


@pytest.mark.parametrize(
    "slip",
    ["finetune.batch_size=127", "pretrain.learning_rate=1e-4", "finetune.epochs=2", "finetune.aspect=square",
     "projector=linear", "finetune.lora.rank=64", "finetune_data.rows=66500"],
)  # fmt: skip
def test_a_slip_in_a_recipe_is_found(slip: str) -> None:
    """One figure changed is one difference."""
    recipe = apply_overrides(find_paper_recipe("llava_15_7b_lora"), [slip])
    assert differences(recipe) == [slip.partition("=")[0]]


def test_what_could_not_be_verified_is_marked() -> None:
    """Of NeXT's stage 2 and of nothing else."""
    unsure = {
        f"{name}: {field}"
        for name, citation in CITATIONS.items()
        for field, cited in citation.fields.items()
        if not cited.certain
    }
    fields = {
        "finetune.learning_rate",
        "finetune.vision_learning_rate",
        "finetune.batch_size",
        "finetune.max_length",
        "finetune.epochs",
        "finetune.template",
        "finetune_data.rows",
    }
    names = ("llava_next_7b", "llava_next_mistral_7b")
    assert unsure == {f"{name}: {field}" for name in names for field in fields}


@pytest.mark.parametrize(
    ("name", "vision", "projector", "language"),
    [
        ("llava_7b", 303_179_776, 4_198_400, 6_738_415_616),
        ("llava_13b", 303_179_776, 5_248_000, 13_015_864_320),
        ("llava_15_7b", 303_507_456, 20_979_712, 6_738_415_616),
        ("llava_15_13b", 303_507_456, 31_467_520, 13_015_864_320),
        ("llava_next_mistral_7b", 303_507_456, 20_979_712, 7_241_732_096),
    ],
)
def test_sizes_are_those_of_the_published_weights(
    name: str, vision: int, projector: int, language: int
) -> None:
    """Counted from shapes, they are what the published files hold."""
    sizes = {"vision": vision, "projector": projector, "language": language}
    assert parameters_of(find_recipe(name)) == sizes


@pytest.fixture
def brought(vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path) -> UserInputs:
    """Two tiny towers, twelve captions, and as many dialogues."""
    for name, question in (("caption_only", "describe the image"), ("dialogues", "how many dogs?")):
        records = [
            Conversation(
                f"r{number}",
                (
                    Turn("user", (ImageRef(f"{number % 7}.png"), question)),
                    Turn("assistant", (("the dog", "no", "a cat is on the left")[number % 3],)),
                ),
            )
            for number in range(12)
        ]
        write_conversations(tmp_path / f"{name}.json", records)
    return UserInputs(
        vision=str(vision_folder),
        language=str(language_folder),
        pretrain_data=tmp_path / "captions.json",
        pretrain_images=photos,
        data=tmp_path / "dialogues.json",
        images=photos,
    )


def run(
    recipe: PaperRecipe,
    brought: UserInputs,
    out: Path,
    *,
    resume: bool = False,
    means: Runtime = MEANS,
) -> dict[str, object]:
    """Run a recipe, and return what its stages came to."""
    return dict(run_paper_recipe(recipe, brought, out, means=means, max_bad=0.0, resume=resume))


def tiny(name: str, *more: str) -> PaperRecipe:
    """Return a paper's recipe at tiny size."""
    return apply_overrides(find_paper_recipe(name), [*TINY, *more])


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_every_recipe_runs_at_tiny_size(name: str, brought: UserInputs, tmp_path: Path) -> None:
    """Both stages take their steps, and just the parts that the paper trains have moved, in its template and aspect."""
    lora = ("finetune.lora.rank=3",) if name.endswith("_lora") else ()
    recipe = tiny(name, *lora)

    outcomes = run(recipe, brought, tmp_path / "run")

    assert list(outcomes) == ["pretrain", "finetune"]
    assert brought.vision
    assert brought.language
    start = assemble(
        Path(brought.vision), Path(brought.language), projector=recipe.projector, seed=recipe.seed
    )
    states = [start.model.state_dict()]
    for stage in recipe.stages:
        folder = tmp_path / "run" / stage.name
        events = read_metrics(folder / "metrics.jsonl")
        assert sum("loss" in event for event in events) == stage.max_steps
        trained = load_model_folder(folder / "model")
        states.append(trained.model.state_dict())
        moved = {
            weight.partition(".")[0]
            for weight, values in states[-1].items()
            if weight not in states[-2] or not torch.equal(values, states[-2][weight])
        }
        assert moved == set(stage.trainable)
        assert (trained.card.template, trained.card.image_aspect) == (stage.template, stage.aspect)
        assert (folder / "adapter").is_dir() == (stage.lora is not None)


def test_a_finished_stage_is_passed_over_and_a_broken_one_goes_on(
    brought: UserInputs, tmp_path: Path, stops_at: Callable[[int], Progress]
) -> None:
    """Stopped in stage 2 and resumed, stage 1 is kept as it is and the end is that of an unbroken run."""
    recipe, out = tiny("llava_15_7b_lora", "finetune.lora.rank=3"), tmp_path / "run"
    run(recipe, brought, tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, brought, out, means=replace(MEANS, progress=stops_at(2)))
    first = (out / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns
    assert not (out / "finetune" / "model").exists()

    with pytest.raises(UsageError, match="this very run, finished; give --resume"):
        run(recipe, brought, out)
    outcomes = run(recipe, brought, out, resume=True)

    assert outcomes["pretrain"] is None
    assert outcomes["finetune"] is not None
    assert (out / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns == first
    made, calm = (
        load_model_folder(folder / "finetune" / "model").model
        for folder in (out, tmp_path / "calm")
    )
    for name, weight in calm.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight), name
    with pytest.raises(UsageError, match="holds a run with other settings"):
        run(apply_overrides(recipe, ["finetune.epochs=2"]), brought, out, resume=True)


def test_a_stage_1_that_was_run_before_is_taken_up(brought: UserInputs, tmp_path: Path) -> None:
    """With its model folder given, towers and captions are not needed, and the end is the same."""
    whole = run(tiny("llava_15_7b"), brought, tmp_path / "whole")
    aligned = UserInputs(
        aligned=tmp_path / "whole" / "pretrain" / "model",
        data=brought.data,
        images=brought.images,
    )
    half = run(tiny("llava_15_7b"), aligned, tmp_path / "half")
    assert (list(whole), list(half)) == (["pretrain", "finetune"], ["finetune"])
    weights = [
        (tmp_path / name / "finetune" / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "half")
    ]
    assert weights[0] == weights[1]


def test_a_stage_1_takes_the_place_of_towers_and_captions(
    brought: UserInputs, tmp_path: Path
) -> None:
    """Nothing that is brought beside it is passed over in silence, and it has to be one of the recipe's own."""
    run(tiny("llava_7b"), brought, tmp_path / "v1")
    aligned = replace(brought, aligned=tmp_path / "v1" / "pretrain" / "model")
    with pytest.raises(
        UsageError, match=r"so --vision, --language, --pretrain-data.* would not be"
    ):
        run(tiny("llava_7b"), aligned, tmp_path / "run")
    alone = UserInputs(aligned=aligned.aligned, data=brought.data, images=brought.images)
    with pytest.raises(UsageError, match="has projector 'linear', llava_15_7b has 'mlp2x_gelu'"):
        run(tiny("llava_15_7b"), alone, tmp_path / "run")


def test_what_is_missing_is_named_with_where_people_get_it(
    brought: UserInputs, tmp_path: Path
) -> None:
    """Every tower and data set that was not given, at once, before a folder is made."""
    recipe = find_paper_recipe("llava_15_7b")
    with pytest.raises(UsageError) as caught:
        run(recipe, UserInputs(), tmp_path / "run")
    for told in (
        "--vision FOLDER (openai/clip-vit-large-patch14-336 on the",
        "--language FOLDER (lmsys/vicuna-7b-v1.5 on the",
        "--pretrain-data FILE (LCS-558K: blip_laion_cc_sbu_558k.json, 558,128 records; liuhaotian/LLaVA-Pretrain on",
        "--data FILE (LLaVA-1.5's mix: llava_v1_5_mix665k.json, 665,000 records, with coco/train2017, gqa/images",
    ):
        assert told in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError) as caught:
        run(recipe, replace(brought, data=None), tmp_path / "run")
    assert str(caught.value).count("FILE") == 1


def test_what_would_stop_stage_2_stops_before_stage_1(brought: UserInputs, tmp_path: Path) -> None:
    """A broken data file and a layer that is not there are found before the first step, and do not claim the folder."""
    assert brought.data
    recipe = tiny("llava_15_7b_lora", "finetune.lora.targets=q_prj,")
    with pytest.raises(UsageError, match="did you mean 'q_proj'"):
        run(recipe, brought, tmp_path / "a")
    brought.data.write_text("[")
    with pytest.raises(InputError, match=r"dialogues\.json"):
        run(tiny("llava_15_7b"), brought, tmp_path / "b")
    assert not [*tmp_path.glob("*/pretrain"), *tmp_path.glob("*/recipe.json")]


def test_recipes_of_the_other_kind_are_pointed_to_their_command() -> None:
    """`caldera demo` cannot run a paper's recipe, nor `caldera train recipe` a demo's; a typo is told."""
    with pytest.raises(UsageError, match="run it with: caldera train recipe llava_7b"):
        find_scene_recipe("llava_7b")
    with pytest.raises(UsageError, match="run it with: caldera demo --recipe demo"):
        find_paper_recipe("demo")
    for find in (find_recipe, find_paper_recipe):
        with pytest.raises(UsageError, match="did you mean 'llava_15_7b'"):
            find("llava_15_7")
