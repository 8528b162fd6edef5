"""The demo: LLaVA's whole way on drawn scenes, in minutes on a laptop's CPU."""

from dataclasses import replace

from caldera.recipes.scene_recipe import InstructionMix, QuestionCounts, SceneCounts, SceneRecipe
from caldera.training.stage import FINETUNE, PRETRAIN


def demo() -> SceneRecipe:
    """Train a tiny assistant from the two shipped backbones."""
    return SceneRecipe(
        name="demo",
        scenes=SceneCounts(train=5500, held_out=160),
        pretrain_mix=InstructionMix(caption=1.0),
        finetune_mix=InstructionMix(
            caption=0.1, conversation=0.12, detail=0.06, reasoning=0.1, vqa=0.6, context=0.3
        ),
        vision="scenes-vit",
        language="scenes-llama",
        pretrain=replace(
            PRETRAIN,
            learning_rate=2e-3,
            batch_size=32,
            epochs=3,
            calibrate_projector=True,
            validation_size=128,
            eval_every=50,
            save_every=50,
        ),
        finetune=replace(
            FINETUNE,
            learning_rate=5e-4,
            projector_learning_rate=1e-3,
            batch_size=16,
            calibrate_projector=True,
            validation_size=128,
            eval_every=50,
            save_every=50,
        ),
        questions=QuestionCounts(),
    )
