"""What the two shipped backbones know, each probed by itself on scenes that neither has met.

    python -m benchmarks.backbone_quality

Vision tower: a linear classifier on the features that LLaVA takes, those of the layer before the last, in the one patch
that holds most of a thing, names its kind, color, place and how many of its kind there are. Language model: short
questions about scenes told as bags of words, answered word for word.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast

from backbones.language_pretraining import evaluate_answers, read_scenes
from backbones.patch_words import patch_coverage
from backbones.text_corpus import DescriptionMix
from backbones.vision_pretraining import render_scenes
from caldera.annotations.boxes import position_of
from caldera.scenes.backbones import find_backbone
from caldera.scenes.scene import ObjectGroup, Scene, SceneObject

SEED = 9001
"""Of the scenes; no other program draws from it."""

TOLD: dict[str, Callable[[ObjectGroup, SceneObject], str | None]] = {
    "kind": lambda group, _: group.kind.name,
    "colour": lambda group, _: group.color,
    "number": lambda group, _: str(len(group.things)),
    "place": lambda _, thing: position_of(thing.box),
}
"""What a thing is asked for; None leaves it out."""


def features_of(tower: CLIPVisionModel, pixels: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Return the feature of the patch that holds most of each thing, (things, width)."""
    with torch.no_grad():
        seen = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    patches = [
        patches[int(patch_coverage(thing).argmax())]  # (width,)
        for patches, scene in zip(seen, scenes, strict=True)
        for _, thing in scene.things
    ]
    return torch.stack(patches)


def probe_tower(work: Path, learn_from: int, ask_about: int) -> dict[str, tuple[float, float]]:
    """Return, for each thing to be told, the share that a linear classifier gets right and that of the commonest."""
    gallery = render_scenes(work / "pixels.npy", learn_from + ask_about, SEED)
    tower = CLIPVisionModel.from_pretrained(find_backbone("scenes-vit"), dtype=torch.float32)
    scenes = [gallery.scene(index) for index in range(len(gallery))]
    features = torch.cat(
        [
            features_of(tower, gallery.pixels(range(at, at + 100)), scenes[at : at + 100])
            for at in range(0, len(scenes), 100)
        ]
    )
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    things = [each for scene in scenes for each in scene.things]
    first = sum(len(scene.things) for scene in scenes[:learn_from])
    found = {}
    for name, tell in TOLD.items():
        told = [tell(*each) for each in things]
        words = sorted({word for word in told if word})
        known = torch.tensor([at for at, word in enumerate(told) if word])
        wanted = torch.tensor([words.index(told[at] or "") for at in known.tolist()])
        learn = known < first
        right = classify(
            features[known[learn]], wanted[learn], features[known[~learn]], wanted[~learn]
        )
        commonest = wanted[~learn] == wanted[learn].mode().values
        found[name] = right, commonest.float().mean().item()
    return found


def classify(features: Tensor, wanted: Tensor, unseen: Tensor, unseen_wanted: Tensor) -> float:
    """Fit a linear classifier and return the share of unseen things it gets right."""
    head = nn.Linear(features.shape[1], int(wanted.max()) + 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        cross_entropy(head(features), wanted).backward()
        optimizer.step()
    return (head(unseen).argmax(dim=1) == unseen_wanted).float().mean().item()


def probe_language(work: Path, count: int) -> dict[str, float]:
    """Return the share of short answers about unseen scenes, told as bags, that are right word for word."""
    folder = find_backbone("scenes-llama")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    conversations, scenes = read_scenes(work, count, SEED)
    asked = [one for one in conversations if one.id.endswith(("-vqa", "-context"))]
    return evaluate_answers(model, tokenizer, asked, scenes, DescriptionMix(bags=1.0))


def main() -> None:
    """Probe both and print."""
    parser = argparse.ArgumentParser(description="Probe the shipped backbones.")
    parser.add_argument(
        "--learn-from", type=int, default=3000, help="scenes to fit the linear classifier on"
    )
    parser.add_argument("--ask-about", type=int, default=500, help="unseen scenes")
    wanted = parser.parse_args()
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        print("scenes-vit: a linear classifier on one patch of a thing (the commonest answer)")
        tower = probe_tower(Path(folder), wanted.learn_from, wanted.ask_about)
        for name, (right, commonest) in tower.items():
            print(f"  {name:9} {right:6.1%}  ({commonest:.1%})")
        print("scenes-llama: short answers about scenes told as bags")
        for name, share in probe_language(Path(folder), wanted.ask_about).items():
            print(f"  {name:9} {share:6.1%}")


if __name__ == "__main__":
    main()
