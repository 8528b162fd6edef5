"""Caption metrics agree with pycocoevalcap, which scores COCO's captions, on human captions of 800 images."""

import shutil
from pathlib import Path

import pytest

from caldera.annotations.caption_pairs import read_pairs
from caldera.evaluation.caption_metrics import bleu, cider_d, mean_rouge_l, ptb_tokenize
from caldera.files.skipped_items import SkippedItems

pytestmark = pytest.mark.reference

Captions = dict[str, list[str]]

SYNTHETIC: Captions = {
    "1": ["A dog isn't on the beach.", "the dog's beach, a sunny one", "a dog"],
    "2": ["two cats asleep", "Two tri-colored cats sleep on a bed .", "there are two cats"],
    "3": ["", "a red car", "a car parked in a street at 3:30"],
    "4": ["a man and a man and a man", "a man", "men"],
    "5": ["a bird", "nothing like it", "quite another thing"],
}
"""Cases that real captions lack: empty ones, repetition, nothing in common."""


@pytest.fixture(params=["synthetic", "real"])
def captions(request: pytest.FixtureRequest) -> Captions:
    """Captions of each image; the first is scored against the others."""
    if request.param == "synthetic":
        return SYNTHETIC
    folder: Path = request.getfixturevalue("third_party")
    pairs = read_pairs(folder / "flickr8k" / "captions.csv", SkippedItems(), check_images=False)
    captions = {image.id: list(image.captions) for image in pairs.images}
    assert len(captions) == 800
    return captions


def test_bleu_rouge_and_cider(captions: Captions) -> None:
    """They agree to a millionth on the same tokens."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates = {name: texts[0] for name, texts in captions.items()}
    references = {name: texts[1:] for name, texts in captions.items()}
    split = {
        name: [" ".join(ptb_tokenize(text)) for text in texts] for name, texts in captions.items()
    }
    arguments = (
        {name: texts[1:] for name, texts in split.items()},
        {name: texts[:1] for name, texts in split.items()},
    )
    assert bleu(candidates, references) == pytest.approx(
        Bleu(4).compute_score(*arguments, verbose=0)[0], abs=1e-6
    )
    assert mean_rouge_l(candidates, references) == pytest.approx(
        Rouge().compute_score(*arguments)[0], abs=1e-6
    )
    assert cider_d(candidates, references) == pytest.approx(
        Cider().compute_score(*arguments)[0], abs=1e-6
    )


@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer needs java")
def test_words_are_those_of_the_ptb_tokenizer(third_party: Path) -> None:
    """The tokens of all 4,000 captions of flickr8k are equal."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    pairs = read_pairs(
        third_party / "flickr8k" / "captions.csv", SkippedItems(), check_images=False
    )
    captions = {image.id: [{"caption": text} for text in image.captions] for image in pairs.images}
    split = PTBTokenizer().tokenize(captions)
    tokens = {image.id: [ptb_tokenize(text) for text in image.captions] for image in pairs.images}
    assert tokens == {name: [text.split() for text in texts] for name, texts in split.items()}
