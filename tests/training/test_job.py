"""A training job trains, writes its folder, never overwrites a result, and skips only what it may."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from caldera.conversation import Conversation, Turn
from caldera.errors import CalderaError, ConversationError, ImageError, UsageError
from caldera.files.skipped_items import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder
from caldera.formats.tokenizer import added_token_ids
from caldera.model.bundle import LlavaBundle
from caldera.templates.registry import find_template
from caldera.templates.tokenization import context_tokenizer
from caldera.training.hyperparameters import FINETUNE, Part, Stage
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.metrics_log import read_metrics
from tests.training.jobs import dialogues, make_job
from tests.training.test_metrics_log import read_tensorboard

STAGE = replace(
    FINETUNE,
    learning_rate=3e-3,
    batch_size=4,
    epochs=2,
    validation_size=4,
    eval_every=5,
    save_every=3,
    max_length=256,
)


def job(
    assistant: LlavaBundle, photos: Path, out: Path, stage: Stage = STAGE, **changes: object
) -> TrainingJob:
    """Return a job on forty dialogues."""
    return make_job(assistant, photos, out, stage, **changes)


def test_a_job_trains_and_writes_a_complete_folder(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """The validation loss falls, every step is logged, and the model folder has the settings and the weights."""
    trained, result = job(assistant, photos, tmp_path / "run").run()

    assert result is not None
    assert result.first_validation_loss is not None
    assert result.last_validation_loss is not None
    assert result.last_validation_loss < result.first_validation_loss - 0.3
    events = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [event["step"] for event in events] == list(range(result.steps + 1))
    loaded = load_model_folder(tmp_path / "run" / "model")
    assert loaded.card == trained.card
    assert loaded.card.stage == "finetune"
    assert loaded.card.recipe["finetune"]["batch_size"] == 4
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    expected = [
        {name: value for name, value in event.items() if name != "seconds"} for event in events
    ]
    logged = read_tensorboard(tmp_path / "run" / "tensorboard")
    assert [pytest.approx(step, rel=1e-6) for step in logged] == expected


@pytest.mark.parametrize("trainable", [("projector", "language"), ("projector",)])
def test_rows_of_added_tokens_end_as_the_mean_of_the_others(
    assistant: LlavaBundle, photos: Path, tmp_path: Path, trainable: tuple[Part, ...]
) -> None:
    """The head's rows of the image token, of padding, and without a token; where the head is frozen no row moves."""
    head = assistant.model.language.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    before = head.weight.detach().clone()
    added = added_token_ids(assistant.tokenizer, len(before))
    job(assistant, photos, tmp_path / "run", replace(STAGE, trainable=trainable)).run()
    if "language" not in trainable:
        assert torch.equal(head.weight, before)
        return
    words = [row for row in range(len(before)) if row not in added]
    assert (head.weight[words] != before[words]).any(dim=1).all()
    mean = head.weight[words].mean(dim=0).expand(len(added), -1)
    torch.testing.assert_close(head.weight[added], mean)


def test_a_job_adds_the_special_tokens_of_its_template(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """A model whose tokenizer lacks them is trained with them, and its folder has them."""
    special = context_tokenizer(assistant.tokenizer).special
    assert special.keys().isdisjoint(find_template("gemma").tokens)

    job(assistant, photos, tmp_path / "run", stage=replace(STAGE, template="gemma")).run()

    loaded = load_model_folder(tmp_path / "run" / "model")
    assert loaded.card.template == "gemma"
    assert context_tokenizer(loaded.tokenizer).special.keys() > {*find_template("gemma").tokens}


def test_an_interrupted_job_does_not_start_again_without_resume(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[[TrainingJob], None],
) -> None:
    """Its hours would be lost, or two runs' checkpoints mixed; the checkpoints remain."""
    interrupt(job(start(), photos, tmp_path / "run"))

    checkpoints = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
    with pytest.raises(UsageError, match="interrupted after step 6; add --resume to resume it"):
        job(start(), photos, tmp_path / "run").run()
    other = replace(STAGE, learning_rate=1e-4)
    with pytest.raises(
        UsageError, match="made with other data, settings or weights: learning_rate was"
    ):
        job(start(), photos, tmp_path / "run", other).run()
    assert sorted((tmp_path / "run" / "checkpoints").rglob("*")) == checkpoints


def test_a_rejected_resume_changes_nothing(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[[TrainingJob], None],
) -> None:
    """Other settings with --resume are an error before a file of the run is changed."""
    interrupt(job(start(), photos, tmp_path / "run"))

    def content() -> dict[Path, bytes]:
        files = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = content()
    other = replace(STAGE, learning_rate=1e-4)
    with pytest.raises(
        UsageError, match="made with other data, settings or weights: learning_rate was"
    ):
        job(start(), photos, tmp_path / "run", other, resume=True).run()
    assert content() == before


def test_nothing_finished_is_overwritten(
    start: Callable[[], LlavaBundle],
    vision_folder: Path,
    language_folder: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    """The same run is kept with --resume; other settings or data need another folder."""
    job(start(), photos, tmp_path / "run").run()
    finished, result = job(start(), photos, tmp_path / "run", resume=True).run()
    assert result is None
    assert finished.card.stage == "finetune"
    with pytest.raises(UsageError, match="this very run, finished; add --resume to keep it"):
        job(start(), photos, tmp_path / "run").run()
    other = replace(STAGE, learning_rate=1e-4)
    with pytest.raises(UsageError, match="of other data, settings or weights: learning_rate was"):
        job(start(), photos, tmp_path / "run", other, resume=True).run()
    padded = assemble(vision_folder, language_folder, seed=3, aspect="pad")
    with pytest.raises(UsageError, match="choose another --out"):
        job(padded, photos, tmp_path / "run", resume=True).run()


HOLDER = """
import sys, time
from pathlib import Path
from caldera.files.atomic import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_rejected(assistant: LlavaBundle, photos: Path, tmp_path: Path) -> None:
    """A second process cannot train in the same folder; the message names the first."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
            job(assistant, photos, tmp_path / "run").run()
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()


def write_gif(path: Path) -> None:
    """Write a GIF, whatever the name says."""
    Image.new("P", (7, 5), 3).save(path, format="gif")


def write_huge(path: Path) -> None:
    """Write a small file that declares 300 megapixels."""
    Image.new("1", (20_000, 15_000)).save(path, format="png")


def truncate(path: Path) -> None:
    """Cut a file in the middle, which its header does not show."""
    path.write_bytes(path.read_bytes()[:-60])


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "does not exist"),
    "text": (lambda path: path.write_bytes(b"not an image"), "is a text file"),
    "empty": (lambda path: path.write_bytes(b""), "0.png"),
    "huge": (write_huge, "0.png"),
    "truncated": (truncate, "0.png"),
}


@pytest.mark.parametrize(
    ("kind", "cached"), [*((kind, True) for kind in UNUSABLE), ("truncated", False)]
)
def test_unusable_images_are_an_error_or_skipped_and_listed(
    start: Callable[[], LlavaBundle], photos: Path, tmp_path: Path, kind: str, cached: bool
) -> None:
    """An error names the image; where the user allows it, its records are skipped, counted and listed (F6)."""
    damage, reason = UNUSABLE[kind]
    damage(photos / "0.png")
    stage = replace(STAGE, max_steps=1, cache_features=cached, batch_size=40)
    with pytest.raises(ImageError, match=r"0\.png"):
        job(start(), photos, tmp_path / "a", stage).run()
    assert not (tmp_path / "a" / "model").exists()

    skipped = SkippedItems(0.3)
    job(start(), photos, tmp_path / "b", stage, skipped=skipped).run()

    lines = (tmp_path / "b" / "skipped.jsonl").read_text().splitlines()
    expected = [f"record {item.id!r}" for item in dialogues(40) if "0.png" in item.images]
    assert [json.loads(line)["location"] for line in lines] == expected
    assert all(reason in json.loads(line)["reason"] for line in lines)


def test_an_image_is_recognized_by_its_content(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """A GIF that is named .png is used (F6)."""
    write_gif(photos / "0.png")
    job(assistant, photos, tmp_path / "run", replace(STAGE, max_steps=1)).run()
    assert not (tmp_path / "run" / "skipped.jsonl").exists()


def test_more_invalid_records_than_allowed_stop_the_job(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """The limit is enforced, and a record that is too long is never truncated."""
    short = replace(STAGE, max_length=60)
    with pytest.raises(
        ConversationError, match=r"is \d+ tokens long \(0 of images\), over the limit of 60"
    ):
        job(assistant, photos, tmp_path / "a", short).run()
    with pytest.raises(CalderaError, match=r"over the limit of 0\.01"):
        job(assistant, photos, tmp_path / "b", short, skipped=SkippedItems(0.01)).run()


def test_the_context_length_of_the_language_model_is_a_limit(
    vision_folder: Path, gpt2_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """A record longer than the model's positions is an error before training; one that just fits is trained on."""
    assistant = assemble(vision_folder, gpt2_folder, seed=3)
    turns = Turn("user", ("a " * 300,)), Turn("assistant", ("yes",))
    data = TrainingData(conversations=[Conversation("long", turns)], images=photos)
    wide = replace(STAGE, max_length=2048, validation_size=0)
    message = (
        r"record 'long' is (\d+) tokens long \(0 of images\), over the limit of 281 that the language model has "
        "positions for"
    )
    with pytest.raises(ConversationError, match=message) as caught:
        job(assistant, photos, tmp_path / "a", wide, data=data).run()
    match = re.search(message, str(caught.value))
    assert match is not None
    surplus = int(match[1]) - 281
    fitting = Turn("user", ("a " * (300 - surplus),)), turns[1]
    data = replace(data, conversations=[Conversation("fits", fitting)])
    [sample] = job(assistant, photos, tmp_path, wide, data=data)._encode(assistant)
    # Not a multiple of what rows are rounded up to.
    assert sample.length == 281
    job(assistant, photos, tmp_path / "b", wide, data=data).run()


def test_a_job_without_a_usable_image_is_an_error(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """Where every record may be skipped and is, there is nothing to train on."""
    for photo in photos.iterdir():
        photo.write_bytes(b"not an image")
    with_images = [dialogue for dialogue in dialogues(40) if dialogue.images]
    data = TrainingData(conversations=with_images, images=photos)
    with pytest.raises(ConversationError, match="no record is left to train on"):
        job(assistant, photos, tmp_path / "run", data=data, skipped=SkippedItems(1.0)).run()


def test_the_fraction_of_skipped_records_is_of_all_records(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """Records skipped for their text and for their image count together, relative to the whole data set."""
    (photos / "0.png").write_bytes(b"not an image")
    (photos / "1.png").unlink()
    num_invalid = sum(bool({"0.png", "1.png"} & {*item.images}) for item in dialogues(40))
    skipped = SkippedItems(num_invalid / 40)
    job(assistant, photos, tmp_path / "run", skipped=skipped).run()
    assert len(skipped.items) == num_invalid


def test_a_projector_is_not_calibrated_without_images(
    start: Callable[[], LlavaBundle], photos: Path, tmp_path: Path
) -> None:
    """Text alone trains to the same weights with `calibrate_projector` as without."""
    data = TrainingData(conversations=dialogues(40)[::3], images=photos)
    weights = []
    for calibrate in (True, False):
        stage = replace(STAGE, calibrate_projector=calibrate)
        trained, _ = job(start(), photos, tmp_path / str(calibrate), stage, data=data).run()
        weights.append(trained.model.state_dict())
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())
