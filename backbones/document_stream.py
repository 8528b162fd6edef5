"""Endless stream of the text corpus: dialogues, captions, drills and quizzes in the proportions of a mix."""

import random
from collections.abc import Iterator, Mapping, Sequence

from backbones.quizzes import SceneGroups, comparison_drill, quiz_document
from backbones.text_corpus import (
    CorpusSegment,
    DescriptionMix,
    Document,
    bags_of_words,
    dialogue_document,
    drill_document,
)
from caldera.conversation import Conversation
from caldera.scenes.captions import captions_of
from caldera.scenes.scene import Scene


def stream_documents(
    conversations: Sequence[Conversation],
    scenes: Mapping[str, Scene],
    *,
    end: str,
    mix: DescriptionMix,
    seed: int,
) -> Iterator[Document]:
    """Yield dialogues forever, in a new order and with new descriptions each epoch, and captions, drills and quizzes.

    Args:
        conversations: Dialogues about the scenes.
        scenes: Scenes by the path of their image.
        end: End token after each answer.
        mix: Forms of the descriptions, and number of documents of other kinds.
        seed: Seed of all random choices.
    """
    rng = random.Random(f"documents {seed}")
    all_scenes = list(scenes.values())
    groups = SceneGroups(all_scenes)
    while True:
        for conversation in rng.sample(conversations, len(conversations)):
            yield dialogue_document(conversation, scenes, end=end, mix=mix, rng=rng)
            for _ in range(_sample_count(mix.captioned, rng)):
                yield _captioned_bags(rng.choice(all_scenes), rng)
            for _ in range(_sample_count(mix.drills, rng)):
                yield drill_document(rng.choices(all_scenes, k=rng.choice((1, 1, 2, 3))), mix, rng)
            for _ in range(_sample_count(mix.comparisons, rng)):
                described = groups.comparable(rng) if rng.random() < 0.4 else groups.several(rng)
                yield comparison_drill(described, mix, rng)
            for _ in range(_sample_count(mix.quizzes, rng)):
                described = groups.single(rng) if rng.random() < 0.4 else groups.several(rng)
                if quiz := quiz_document(described, mix, rng, end=end):
                    yield quiz


def _sample_count(average: float, rng: random.Random) -> int:
    """Return a whole number near the average."""
    return int(average + rng.random())


def _captioned_bags(scene: Scene, rng: random.Random) -> Document:
    caption = rng.choice(captions_of(scene))
    return [
        CorpusSegment("", cells=bags_of_words(scene, rng), scene=scene),
        CorpusSegment(f"{caption}\n", answer=True),
    ]
