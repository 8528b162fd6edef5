"""The demo: LLaVA's whole way on drawn scenes, in minutes on a laptop's CPU."""

from dataclasses import replace

from caldera.recipes.scene_recipe import Mix, Questions, SceneRecipe, Scenes
from caldera.training.stage import FINETUNE, PRETRAIN


def demo() -> SceneRecipe:
    """Train a tiny assistant from the two shipped backbones."""
    return SceneRecipe(
        name="demo",
        scenes=Scenes(train=5500, held_out=160),
        pretrain_mix=Mix(caption=1.0),
        finetune_mix=Mix(
            caption=0.1, conversation=0.12, detail=0.06, reasoning=0.1, vqa=0.6, context=0.3
        ),
        vision="scenes-vit",
        language="scenes-llama",
        pretrain=replace(
            PRETRAIN,
            learning_rate=2e-3,
            batch_size=32,
            epochs=3,
            fit_projector=True,
            validation_rows=128,
            validate_every=50,
            checkpoint_every=50,
        ),
        finetune=replace(
            FINETUNE,
            learning_rate=5e-4,
            projector_learning_rate=1e-3,
            batch_size=16,
            fit_projector=True,
            validation_rows=128,
            validate_every=50,
            checkpoint_every=50,
        ),
        questions=Questions(),
    )
