"""The demo with a real language model: SmolLM2-135M-Instruct takes the place of the tiny one."""

from dataclasses import replace

from caldera.recipes.demo import demo
from caldera.recipes.scene_recipe import InstructionMix, QuestionCounts, SceneRecipe


def demo_smollm2() -> SceneRecipe:
    """Train an assistant from the shipped vision tower and a language model that has read far more than scenes."""
    base = demo()
    return replace(
        base,
        name="demo_smollm2",
        language="smollm2-135m-instruct",
        scenes=replace(base.scenes, train=3000),
        finetune_mix=InstructionMix(
            vqa=0.6, context=0.25, conversation=0.05, detail=0.05, reasoning=0.05
        ),
        pretrain=replace(base.pretrain, learning_rate=2e-4, batch_size=16),
        finetune=replace(
            base.finetune,
            learning_rate=1e-4,
            projector_learning_rate=2e-4,
            batch_size=16,
            micro_batch_size=4,
        ),
        questions=QuestionCounts(per_image=4, context_per_image=1, captioned=20),
    )
