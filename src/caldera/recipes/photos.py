"""Recipe of a product assistant: photos in class folders, a tower and a language model from PyPI."""

from dataclasses import replace

from caldera.recipes.recipe import PhotoRecipe
from caldera.training.hyperparameters import FINETUNE, PRETRAIN


def photos() -> PhotoRecipe:
    """Return the recipe of an assistant from EfficientNet-Lite0 and SmolLM2-135M for a user's photos."""
    return PhotoRecipe(
        name="photos",
        vision="efficientnet-lite0",
        language="smollm2-135m-instruct",
        aspect="pad",
        pretrain=replace(
            PRETRAIN,
            learning_rate=1e-3,
            batch_size=8,
            calibrate_projector=True,
            validation_size=64,
            eval_every=100,
            save_every=50,
        ),
        finetune=replace(
            FINETUNE,
            template="chatml_direct",
            learning_rate=3e-4,
            projector_learning_rate=1e-3,
            batch_size=24,
            epochs=2,
            validation_size=96,
            eval_every=100,
            save_every=100,
        ),
    )
