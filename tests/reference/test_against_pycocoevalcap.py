"""Caption metrics agree with pycocoevalcap, which scores COCO's captions, on what people wrote of 800 images."""

import shutil
from pathlib import Path

import pytest

from caldera.annotations.caption_pairs import read_pairs
from caldera.evaluation.caption_metrics import bleu, cider_d, mean_rouge_l, ptb_tokenize
from caldera.files.skipped import SkippedItems

pytestmark = pytest.mark.reference

Captions = dict[str, list[str]]

WRITTEN: Captions = {
    "1": ["A dog isn't on the beach.", "the dog's beach, a sunny one", "a dog"],
    "2": ["two cats asleep", "Two tri-colored cats sleep on a bed .", "there are two cats"],
    "3": ["", "a red car", "a car parked in a street at 3:30"],
    "4": ["a man and a man and a man", "a man", "men"],
    "5": ["a bird", "nothing like it", "quite another thing"],
}
"""Made for what real captions lack: nothing said, repetition, nothing in common."""


@pytest.fixture(params=["made", "real"])
def captions(request: pytest.FixtureRequest) -> Captions:
    """Captions of each image; the first is scored against the others."""
    if request.param == "made":
        return WRITTEN
    folder: Path = request.getfixturevalue("third_party")
    pairs = read_pairs(folder / "flickr8k" / "captions.csv", SkippedItems(), check_images=False)
    captions = {image.id: list(image.captions) for image in pairs.images}
    assert len(captions) == 800
    return captions


def test_bleu_rouge_and_cider(captions: Captions) -> None:
    """On the same words, to a millionth; of WRITTEN, real ones come in millions of n-grams."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said = {name: texts[0] for name, texts in captions.items()}
    others = {name: texts[1:] for name, texts in captions.items()}
    split = {
        name: [" ".join(ptb_tokenize(text)) for text in texts] for name, texts in captions.items()
    }
    theirs = (
        {name: texts[1:] for name, texts in split.items()},
        {name: texts[:1] for name, texts in split.items()},
    )
    assert bleu(said, others) == pytest.approx(
        Bleu(4).compute_score(*theirs, verbose=0)[0], abs=1e-6
    )
    assert mean_rouge_l(said, others) == pytest.approx(Rouge().compute_score(*theirs)[0], abs=1e-6)
    assert cider_d(said, others) == pytest.approx(Cider().compute_score(*theirs)[0], abs=1e-6)


@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer needs java")
def test_words_are_those_of_the_ptb_tokenizer(third_party: Path) -> None:
    """Of 4,000 captions of flickr8k every one."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    pairs = read_pairs(third_party / "flickr8k" / "captions.csv", SkippedItems(), check_images=False)
    captions = {image.id: [{"caption": text} for text in image.captions] for image in pairs.images}
    split = PTBTokenizer().tokenize(captions)
    ours = {image.id: [ptb_tokenize(text) for text in image.captions] for image in pairs.images}
    assert ours == {name: [text.split() for text in texts] for name, texts in split.items()}
