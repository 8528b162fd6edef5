"""Evaluation of the two shipped backbones on scenes of a new seed: `python -m benchmarks.backbone_quality`.

Vision tower: a linear probe on the features that LLaVA uses, those of the second to last layer, in the patch with the
largest part of an object, predicts its kind, color, position and the number of such objects. Language model: exact
match of short answers about scenes that are described by bags of words.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast

from backbones.language_pretraining import evaluate_answers, sample_dialogues
from backbones.patch_words import patch_coverage
from backbones.text_corpus import DescriptionMix
from backbones.vision_pretraining import render_scenes
from caldera.annotations.boxes import position_of
from caldera.scenes.backbones import find_backbone
from caldera.scenes.scene import ObjectGroup, Scene, SceneObject

SEED = 9001
"""Seed of the scenes; no training uses it."""

LABELS: dict[str, Callable[[ObjectGroup, SceneObject], str | None]] = {
    "kind": lambda group, _: group.kind.name,
    "color": lambda group, _: group.color,
    "number": lambda group, _: str(len(group.objects)),
    "position": lambda _, scene_object: position_of(scene_object.box),
}
"""Labels of an object; None excludes it."""


def features_of(tower: CLIPVisionModel, pixels: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Return the feature of the patch with the largest part of each object, (objects, width)."""
    with torch.no_grad():
        features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    patches = [
        patches[int(patch_coverage(scene_object).argmax())]  # (width,)
        for patches, scene in zip(features, scenes, strict=True)
        for _, scene_object in scene.objects
    ]
    return torch.stack(patches)


def probe_tower(work: Path, num_train: int, num_test: int) -> dict[str, tuple[float, float]]:
    """Return the accuracy of a linear probe, and of the most frequent answer, for each label."""
    gallery = render_scenes(work / "pixels.npy", num_train + num_test, SEED)
    tower = CLIPVisionModel.from_pretrained(find_backbone("scenes-vit"), dtype=torch.float32)
    scenes = [gallery.scene(index) for index in range(len(gallery))]
    features = torch.cat(
        [
            features_of(
                tower, gallery.pixels(range(start, start + 100)), scenes[start : start + 100]
            )
            for start in range(0, len(scenes), 100)
        ]
    )
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    objects = [pair for scene in scenes for pair in scene.objects]
    num_train_objects = sum(len(scene.objects) for scene in scenes[:num_train])
    accuracies = {}
    for name, get_label in LABELS.items():
        labels = [get_label(*pair) for pair in objects]
        classes = sorted({label for label in labels if label})
        labeled = torch.tensor([index for index, label in enumerate(labels) if label])
        targets = torch.tensor([classes.index(label) for label in labels if label])
        is_train = labeled < num_train_objects
        train, test = labeled[is_train], labeled[~is_train]
        accuracy = classify(features[train], targets[is_train], features[test], targets[~is_train])
        most_frequent = targets[~is_train] == targets[is_train].mode().values
        accuracies[name] = accuracy, most_frequent.float().mean().item()
    return accuracies


def classify(features: Tensor, targets: Tensor, test: Tensor, test_targets: Tensor) -> float:
    """Fit a linear classifier and return its accuracy on the test features."""
    head = nn.Linear(features.shape[1], int(targets.max()) + 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        cross_entropy(head(features), targets).backward()
        optimizer.step()
    return (head(test).argmax(dim=1) == test_targets).float().mean().item()


def probe_language(count: int) -> dict[str, float]:
    """Return the exact match accuracy of short answers about new scenes described by bags."""
    folder = find_backbone("scenes-llama")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    conversations, scenes = sample_dialogues(count, SEED)
    dialogues = [item for item in conversations if item.id.endswith(("-vqa", "-context"))]
    return evaluate_answers(model, tokenizer, dialogues, scenes, DescriptionMix(bags=1.0))


def main() -> None:
    """Evaluate both and print the accuracies."""
    parser = argparse.ArgumentParser(description="Evaluate the shipped backbones.")
    parser.add_argument(
        "--learn-from", type=int, default=3000, help="scenes to fit the linear probe on"
    )
    parser.add_argument("--ask-about", type=int, default=500, help="scenes to evaluate on")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        print("scenes-vit: a linear probe on one patch of an object (most frequent answer)")
        tower = probe_tower(Path(folder), args.learn_from, args.ask_about)
        for name, (accuracy, most_frequent) in tower.items():
            print(f"  {name:9} {accuracy:6.1%}  ({most_frequent:.1%})")
        print("scenes-llama: short answers about scenes described by bags")
        for name, accuracy in probe_language(args.ask_about).items():
            print(f"  {name:13} {accuracy:6.1%}")


if __name__ == "__main__":
    main()
