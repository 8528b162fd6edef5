"""Recipes of the demo: tiny assistants trained on drawn scenes."""

from dataclasses import replace

from caldera.recipes.recipe import InstructionMix, QuestionCounts, SceneCounts, SceneRecipe
from caldera.training.hyperparameters import FINETUNE, PRETRAIN


def demo() -> SceneRecipe:
    """Return the recipe of a tiny assistant from the two packaged backbones."""
    return SceneRecipe(
        name="demo",
        scenes=SceneCounts(train=5500, held_out=160),
        pretrain_mix=InstructionMix(caption=1.0),
        finetune_mix=InstructionMix(
            caption=0.2, conversation=0.12, detail=0.06, reasoning=0.1, vqa=0.6, context=0.3
        ),
        vision="scenes-vit",
        language="scenes-llama",
        pretrain=replace(
            PRETRAIN,
            learning_rate=2e-3,
            batch_size=32,
            epochs=2,
            calibrate_projector=True,
            validation_size=128,
            eval_every=50,
            save_every=50,
        ),
        finetune=replace(
            FINETUNE,
            learning_rate=7e-4,
            projector_learning_rate=2e-3,
            batch_size=16,
            epochs=2,
            calibrate_projector=True,
            validation_size=128,
            eval_every=50,
            save_every=50,
        ),
        questions=QuestionCounts(),
    )


def demo_smollm2() -> SceneRecipe:
    """Return the recipe of an assistant from the packaged vision tower and SmolLM2, a general language model."""
    base = demo()
    return replace(
        base,
        name="demo_smollm2",
        language="smollm2-135m-instruct",
        scenes=replace(base.scenes, train=3000),
        finetune_mix=InstructionMix(
            vqa=0.6, context=0.25, conversation=0.05, detail=0.05, reasoning=0.05
        ),
        pretrain=replace(base.pretrain, learning_rate=2e-4, batch_size=16, epochs=3),
        finetune=replace(
            base.finetune,
            learning_rate=1e-4,
            projector_learning_rate=2e-4,
            batch_size=16,
            epochs=1,
            micro_batch_size=4,
        ),
        questions=QuestionCounts(per_image=4, context_per_image=1, captioned=20),
    )
