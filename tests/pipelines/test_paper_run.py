"""Each paper's recipe runs both stages at tiny size, and can be resumed."""

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
from caldera.recipes.papers import PaperRecipe
from caldera.recipes.registry import PAPER_RECIPES, find_paper_recipe
from caldera.training.metrics_log import read_metrics

RUNTIME = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())

TINY = (
    "pretrain.batch_size=4",
    "pretrain.micro_batch_size=2",
    "pretrain.max_steps=1",
    "pretrain.warmup_ratio=0",
    "pretrain.learning_rate=1e-2",
    "finetune.batch_size=4",
    "finetune.micro_batch_size=2",
    "finetune.max_steps=2",
    "finetune.learning_rate=1e-2",
    "finetune.save_every=1",
)
"""Settings with which a paper's recipe runs in a second."""


@pytest.fixture
def inputs(vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path) -> UserInputs:
    """Two tiny towers, twelve captions, and twelve dialogues."""
    for name, question in (("captions", "describe the image"), ("dialogues", "how many dogs?")):
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
    inputs: UserInputs,
    out: Path,
    *,
    resume: bool = False,
    runtime: Runtime = RUNTIME,
) -> dict[str, object]:
    """Run a recipe, and return the results of its stages."""
    results = run_paper_recipe(
        recipe, inputs, out, runtime=runtime, max_bad_fraction=0.0, resume=resume
    )
    return dict(results)


def tiny(name: str, *more: str) -> PaperRecipe:
    """Return a paper's recipe at tiny size."""
    return apply_overrides(find_paper_recipe(name), [*TINY, *more])


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_every_recipe_runs_at_tiny_size(name: str, inputs: UserInputs, tmp_path: Path) -> None:
    """Both stages take their steps and change exactly the paper's trainable parts, with its template and aspect."""
    lora = ("finetune.lora.rank=3",) if name.endswith("_lora") else ()
    recipe = tiny(name, *lora)

    results = run(recipe, inputs, tmp_path / "run")

    assert list(results) == ["pretrain", "finetune"]
    assert inputs.vision
    assert inputs.language
    start = assemble(
        Path(inputs.vision), Path(inputs.language), projector=recipe.projector, seed=recipe.seed
    )
    states = [start.model.state_dict()]
    for stage in recipe.stages:
        folder = tmp_path / "run" / stage.name
        events = read_metrics(folder / "metrics.jsonl")
        assert sum("loss" in event for event in events) == stage.max_steps
        trained = load_model_folder(folder / "model")
        states.append(trained.model.state_dict())
        changed = {
            weight.partition(".")[0]
            for weight, values in states[-1].items()
            if weight not in states[-2] or not torch.equal(values, states[-2][weight])
        }
        assert changed == set(stage.trainable)
        assert (trained.card.template, trained.card.image_aspect) == (stage.template, stage.aspect)
        assert (folder / "adapter").is_dir() == (stage.lora is not None)


def test_a_finished_stage_is_skipped_and_an_interrupted_one_resumed(
    inputs: UserInputs, tmp_path: Path, stops_at: Callable[[int], Progress]
) -> None:
    """After an interruption in stage 2, stage 1 is not run again and the result is that of an uninterrupted run."""
    recipe, out = tiny("llava_15_7b_lora", "finetune.lora.rank=3"), tmp_path / "run"
    run(recipe, inputs, tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, inputs, out, runtime=replace(RUNTIME, progress=stops_at(2)))
    first = (out / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns
    assert not (out / "finetune" / "model").exists()

    with pytest.raises(UsageError, match=r"finished.*--resume"):
        run(recipe, inputs, out)
    results = run(recipe, inputs, out, resume=True)

    assert results["pretrain"] is None
    assert results["finetune"] is not None
    assert (out / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns == first
    resumed, uninterrupted = (
        load_model_folder(folder / "finetune" / "model").model
        for folder in (out, tmp_path / "uninterrupted")
    )
    for name, weight in uninterrupted.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
    with pytest.raises(UsageError, match="holds a run with other settings"):
        run(apply_overrides(recipe, ["finetune.epochs=2"]), inputs, out, resume=True)


def test_an_earlier_stage_1_gives_the_same_result(inputs: UserInputs, tmp_path: Path) -> None:
    """With its model folder, towers and captions are not needed, and the result is the same."""
    both = run(tiny("llava_15_7b"), inputs, tmp_path / "both")
    stage_2_inputs = UserInputs(
        stage1_model=tmp_path / "both" / "pretrain" / "model",
        data=inputs.data,
        images=inputs.images,
    )
    second = run(tiny("llava_15_7b"), stage_2_inputs, tmp_path / "second")
    assert (list(both), list(second)) == (["pretrain", "finetune"], ["finetune"])
    weights = [
        (tmp_path / name / "finetune" / "model" / "model.safetensors").read_bytes()
        for name in ("both", "second")
    ]
    assert weights[0] == weights[1]


def test_an_earlier_stage_1_excludes_towers_and_captions(
    inputs: UserInputs, tmp_path: Path
) -> None:
    """Inputs that it replaces are rejected, and it must be a stage 1 of the recipe."""
    run(tiny("llava_7b"), inputs, tmp_path / "v1")
    redundant = replace(inputs, stage1_model=tmp_path / "v1" / "pretrain" / "model")
    with pytest.raises(
        UsageError, match=r"so --vision, --language, --pretrain-data.* would not be"
    ):
        run(tiny("llava_7b"), redundant, tmp_path / "run")
    alone = UserInputs(stage1_model=redundant.stage1_model, data=inputs.data, images=inputs.images)
    with pytest.raises(UsageError, match="has projector 'linear', llava_15_7b has 'mlp2x_gelu'"):
        run(tiny("llava_15_7b"), alone, tmp_path / "run")


def test_missing_inputs_are_named_with_their_sources(inputs: UserInputs, tmp_path: Path) -> None:
    """One message has every missing data set, and the towers that are downloaded, before a folder is created."""
    recipe = find_paper_recipe("llava_15_7b")
    with pytest.raises(UsageError) as caught:
        run(recipe, UserInputs(), tmp_path / "run")
    for text in (
        "it downloads openai/clip-vit-large-patch14-336 (--vision replaces it) and lmsys/vicuna-7b-v1.5 (--language",
        "--pretrain-data FILE (LCS-558K: blip_laion_cc_sbu_558k.json, 558,128 records; liuhaotian/LLaVA-Pretrain on",
        "--data FILE (LLaVA-1.5's mix: llava_v1_5_mix665k.json, 665,000 records, with coco/train2017, gqa/images",
    ):
        assert text in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError) as caught:
        run(recipe, replace(inputs, data=None), tmp_path / "run")
    assert str(caught.value).count("FILE") == 1
    assert "downloads openai" not in str(caught.value)
    with pytest.raises(
        UsageError, match=r"--language FOLDER \(lmsys/vicuna-7b-delta-v0, added to the"
    ):
        run(find_paper_recipe("llava_7b"), UserInputs(), tmp_path / "run")


def test_errors_of_stage_2_are_found_before_stage_1(inputs: UserInputs, tmp_path: Path) -> None:
    """A broken data file and an unknown layer are found before the first step, and write no recipe."""
    assert inputs.data
    recipe = tiny("llava_15_7b_lora", "finetune.lora.targets=q_prj,")
    with pytest.raises(UsageError, match="did you mean 'q_proj'"):
        run(recipe, inputs, tmp_path / "a")
    inputs.data.write_text("[")
    with pytest.raises(InputError, match=r"dialogues\.json"):
        run(tiny("llava_15_7b"), inputs, tmp_path / "b")
    assert not [*tmp_path.glob("*/pretrain"), *tmp_path.glob("*/recipe.json")]
