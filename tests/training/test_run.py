"""A stage run whole: it learns, it goes on after a kill as if nothing had happened, and it never overwrites."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from caldera.batches.sampler import split_validation
from caldera.batches.samples import Sample
from caldera.conversation import Conversation, ImageRef, Turn, write_conversations
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import CalderaError, ConversationError, ImageError, UsageError
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.images.anyres import SINGLE_VIEW
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress, Progress
from caldera.templates.template import find_template
from caldera.templates.tokenization import context_tokenizer
from caldera.training.checkpoint import latest_checkpoint
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.metrics_log import read_metrics
from caldera.training.stage import FINETUNE, Stage

MEANS = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())

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


def dialogues(count: int) -> list[Conversation]:
    """Return dialogues about one, two or no images."""
    told = []
    for number in range(count):
        shown = tuple(ImageRef(f"{(number + at) % 7}.png") for at in range(number % 3))
        answer = ("yes", "no", "the dog is on the left")[number % 3]
        turns = (Turn("user", (*shown, "what do you see?")), Turn("assistant", (answer,)))
        told.append(Conversation(f"r{number}", turns))
    return told


def job(
    assistant: LlavaBundle, photos: Path, out: Path, stage: Stage = STAGE, **changes: object
) -> TrainingJob:
    """Return a job on forty dialogues."""
    data = TrainingData(conversations=dialogues(40), images=photos)
    given = {"data": data, "skipped": SkippedItems(), "resume": False, **changes}
    return TrainingJob(
        stage=stage,
        assistant=assistant,
        out=out,
        features=out.parent / "features",
        runtime=MEANS,
        **given,  # type: ignore[arg-type]
    )


def test_a_run_learns_and_leaves_a_whole_folder(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """The loss on held-out rows falls, every step is recorded, and the model folder says how it was made."""
    trained, outcome = job(assistant, photos, tmp_path / "run").run()

    assert outcome is not None
    assert outcome.first_validation_loss is not None
    assert outcome.last_validation_loss is not None
    assert outcome.last_validation_loss < outcome.first_validation_loss - 0.3
    events = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [event["step"] for event in events] == list(range(outcome.steps + 1))
    loaded = load_model_folder(tmp_path / "run" / "model")
    assert loaded.card == trained.card
    assert loaded.card.stage == "finetune"
    assert loaded.card.recipe["finetune"]["batch_size"] == 4
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    told = [{name: value for name, value in event.items() if name != "seconds"} for event in events]
    shown = shown_by_tensorboard(tmp_path / "run" / "tensorboard")
    assert [pytest.approx(step, rel=1e-6) for step in shown] == told


def shown_by_tensorboard(folder: Path) -> list[object]:
    """Return the numbers that TensorBoard reads, one dict for each step."""
    events = EventAccumulator(str(folder)).Reload()
    steps: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for scalar in events.Scalars(name):
            found = steps.setdefault(scalar.step, {"step": scalar.step})
            assert name not in found, "a step is shown twice"
            found[name] = scalar.value
    return [steps[step] for step in sorted(steps)]


def test_a_broken_off_run_goes_on_bit_for_bit(
    vision_folder: Path,
    language_folder: Path,
    photos: Path,
    tmp_path: Path,
    break_off: Callable[[TrainingJob], None],
) -> None:
    """Stopped after a checkpoint and started again, it ends with the weights and losses of an unbroken run."""

    def start() -> LlavaBundle:
        return assemble(vision_folder, language_folder, seed=3)

    unbroken, _ = job(start(), photos, tmp_path / "a").run()
    break_off(job(start(), photos, tmp_path / "b"))
    found = latest_checkpoint(tmp_path / "b" / "checkpoints")
    assert found is not None
    assert found.step == 6

    resumed, _ = job(start(), photos, tmp_path / "b", resume=True).run()

    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    losses = [
        [event.get("loss") for event in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("a", "b")
    ]
    assert losses[0] == losses[1]
    assert len(shown_by_tensorboard(tmp_path / "b" / "tensorboard")) == len(losses[1])


def test_a_stage_gives_its_templates_marks(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """A model whose tokenizer lacks them learns them, and its folder has them."""
    assert (
        context_tokenizer(assistant.tokenizer)
        .special.keys()
        .isdisjoint(find_template("gemma").tokens)
    )

    job(assistant, photos, tmp_path / "run", stage=replace(STAGE, template="gemma")).run()

    loaded = load_model_folder(tmp_path / "run" / "model")
    assert loaded.card.template == "gemma"
    assert context_tokenizer(loaded.tokenizer).special.keys() > {*find_template("gemma").tokens}


def test_dropout_is_drawn_from_the_stages_seed_alone(
    vision_folder: Path,
    gpt2_folder: Path,
    photos: Path,
    tmp_path: Path,
    break_off: Callable[[TrainingJob], None],
) -> None:
    """With a language model that drops out, equal runs are equal bit for bit, broken off or not."""

    def start() -> LlavaBundle:
        return assemble(vision_folder, gpt2_folder, seed=3)

    def weights(out: str, stage: Stage = STAGE, *, resume: bool = False) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(out))  # whatever was drawn before
        trained, _ = job(start(), photos, tmp_path / out, stage, resume=resume).run()
        return trained.model.state_dict()

    break_off(job(start(), photos, tmp_path / "broken off"))
    once, again = weights("a"), weights("before_question")
    resumed = weights("broken off", resume=True)
    for name, weight in once.items():
        assert torch.equal(again[name], weight), name
        assert torch.equal(resumed[name], weight), name


def test_a_broken_checkpoint_is_passed_over(
    assistant: LlavaBundle, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped byte in the newest checkpoint is noticed; the one before is used."""
    job(assistant, photos, tmp_path / "run").run()
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    file = checkpoints[1] / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    found = latest_checkpoint(tmp_path / "run" / "checkpoints")

    assert found is not None
    assert checkpoints[0].name == f"step-{found.step:08d}"
    assert "skipping the corrupt checkpoint" in caplog.text


@pytest.fixture
def break_off(stops_at: Callable[[int], Progress]) -> Callable[[TrainingJob], None]:
    """Run a job that is stopped at step 8, two steps after a checkpoint."""

    def run(running: TrainingJob) -> None:
        with pytest.raises(KeyboardInterrupt):
            replace(running, runtime=Runtime(MEANS.compute, stops_at(8))).run()

    return run


def test_a_broken_off_run_is_not_begun_anew(
    vision_folder: Path,
    language_folder: Path,
    photos: Path,
    tmp_path: Path,
    break_off: Callable[[TrainingJob], None],
) -> None:
    """Its hours would be lost, or two runs' checkpoints mixed: without --resume it is refused."""

    def start() -> LlavaBundle:
        return assemble(vision_folder, language_folder, seed=3)

    break_off(job(start(), photos, tmp_path / "run"))

    kept = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
    with pytest.raises(UsageError, match="interrupted after step 6; add --resume to resume it"):
        job(start(), photos, tmp_path / "run").run()
    other = replace(STAGE, learning_rate=1e-4)
    with pytest.raises(UsageError, match="made with other data, settings or weights"):
        job(start(), photos, tmp_path / "run", other).run()
    assert sorted((tmp_path / "run" / "checkpoints").rglob("*")) == kept


def test_a_refused_resume_changes_nothing(
    vision_folder: Path,
    language_folder: Path,
    photos: Path,
    tmp_path: Path,
    break_off: Callable[[TrainingJob], None],
) -> None:
    """Other settings under --resume are refused before a file of the run is touched."""

    def start() -> LlavaBundle:
        return assemble(vision_folder, language_folder, seed=3)

    break_off(job(start(), photos, tmp_path / "run"))

    def content() -> dict[Path, bytes]:
        files = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = content()
    other = replace(STAGE, learning_rate=1e-4)
    with pytest.raises(UsageError, match="made with other data, settings or weights; choose"):
        job(start(), photos, tmp_path / "run", other, resume=True).run()
    assert content() == before


def test_nothing_finished_is_overwritten(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """The same run is kept under --resume; other settings or data need another folder."""

    def start() -> LlavaBundle:
        return assemble(vision_folder, language_folder, seed=3)

    job(start(), photos, tmp_path / "run").run()
    kept, outcome = job(start(), photos, tmp_path / "run", resume=True).run()
    assert outcome is None
    assert kept.card.stage == "finetune"
    with pytest.raises(UsageError, match="this very run, finished; add --resume to keep it"):
        job(start(), photos, tmp_path / "run").run()
    other = replace(STAGE, learning_rate=1e-4)
    with pytest.raises(UsageError, match="of other data, settings or weights; choose another"):
        job(start(), photos, tmp_path / "run", other, resume=True).run()
    padded = assemble(vision_folder, language_folder, seed=3, aspect="pad")
    with pytest.raises(UsageError, match="choose another --out"):
        job(padded, photos, tmp_path / "run", resume=True).run()


def test_a_folder_in_use_is_refused(assistant: LlavaBundle, photos: Path, tmp_path: Path) -> None:
    """A second process cannot train into the same folder; the message names the first."""
    program = (
        "import sys, time; from pathlib import Path; from caldera.files.atomic import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
            job(assistant, photos, tmp_path / "run").run()
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()


@pytest.mark.parametrize("allowed", [0.0, 0.3])
def test_bad_images_stop_the_run_or_are_listed(
    assistant: LlavaBundle, photos: Path, tmp_path: Path, allowed: float
) -> None:
    """A broken image is an error; where the user allows it, its records are counted, listed and left out."""
    (photos / "0.png").write_bytes(b"not an image")
    bad = job(assistant, photos, tmp_path / "run", skipped=SkippedItems(allowed))
    if not allowed:
        with pytest.raises(ImageError, match=r"0\.png is not a"):
            bad.run()
        assert not (tmp_path / "run" / "model").exists()
        return
    bad.run()
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert len(lines) == sum("0.png" in one.images for one in dialogues(40))
    assert json.loads(lines[0])["reason"].endswith("image; convert it")


def test_more_bad_records_than_allowed_stop_the_run(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """The share is kept to, and a record that is too long is never cut."""
    short = replace(STAGE, max_length=60)
    with pytest.raises(
        ConversationError, match=r"is \d+ tokens long \(0 of images\), over the limit of 60"
    ):
        job(assistant, photos, tmp_path / "a", short).run()
    with pytest.raises(CalderaError, match=r"over the limit of 0\.01"):
        job(assistant, photos, tmp_path / "b", short, skipped=SkippedItems(0.01)).run()


def test_the_language_models_own_context_is_a_limit(
    vision_folder: Path, gpt2_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """A record longer than the model has positions is refused before training; one that just fits is trained on."""
    assistant = assemble(vision_folder, gpt2_folder, seed=3)
    words = Turn("user", ("a " * 300,)), Turn("assistant", ("yes",))
    data = TrainingData(conversations=[Conversation("long", words)], images=photos)
    wide = replace(STAGE, max_length=2048, validation_size=0)
    message = (
        r"record 'long' is (\d+) tokens long \(0 of images\), over the limit of 281 that the language model has "
        "positions for"
    )
    with pytest.raises(ConversationError, match=message) as caught:
        job(assistant, photos, tmp_path / "a", wide, data=data).run()
    found = re.search(message, str(caught.value))
    assert found is not None
    surplus = int(found[1]) - 281
    fitting = Turn("user", ("a " * (300 - surplus),)), words[1]
    data = replace(data, conversations=[Conversation("fits", fitting)])
    [sample] = job(assistant, photos, tmp_path, wide, data=data)._encode(assistant)
    assert sample.length == 281  # no multiple of what rows are rounded up to
    job(assistant, photos, tmp_path / "b", wide, data=data).run()


def shown(number: int, *images: str) -> Sample:
    """Return a sample about images."""
    paths = tuple(Path(name) for name in images)
    return Sample(
        f"r{number}", (1, 2), (1, 2), paths, (SINGLE_VIEW,) * len(paths), (0,) * len(paths)
    )


def test_held_out_rows_share_no_image_with_the_rest() -> None:
    """The split keeps images apart, also those shown second, keeps every row, and is the same for the same seed."""
    pairs = [shown(at, f"{at}.png", f"{at - at % 3}.png") for at in range(30)]
    samples = [*pairs, *(shown(30 + at, f"{at}.png") for at in range(30))]
    for seed in range(7):
        learning, held_out = split_validation(samples, 7, seed=seed)
        assert sorted(one.id for one in (*learning, *held_out)) == sorted(one.id for one in samples)
        assert 0 < len(held_out) <= 6
        told = {path for one in held_out for path in one.images}
        assert told
        assert not told & {path for one in learning for path in one.images}
        assert split_validation(samples, 7, seed=seed) == (learning, held_out)


def test_where_all_rows_are_tied_first_images_are_kept_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A chain of images joins all rows: some are held out all the same, and it is said that they are not all new."""
    chain = [shown(at, f"{at // 2}.png", f"{at // 2 + 1}.png") for at in range(40)]
    learning, held_out = split_validation(chain, 4, seed=1)
    assert len(held_out) == 4
    first = {one.images[0] for one in held_out}
    assert not first & {one.images[0] for one in learning}
    assert "every record shares an image with another" in caplog.text


def test_no_usable_image_is_said(assistant: LlavaBundle, photos: Path, tmp_path: Path) -> None:
    """Where every record may be left out and is, nothing is left to train on."""
    for photo in photos.iterdir():
        photo.write_bytes(b"not an image")
    imaged = [one for one in dialogues(40) if one.images]
    data = TrainingData(conversations=imaged, images=photos)
    with pytest.raises(ConversationError, match="no record is left to train on"):
        job(assistant, photos, tmp_path / "run", data=data, skipped=SkippedItems(1.0)).run()


def test_the_share_of_bad_records_is_of_all(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """Records left out for their text and for their image are one share of the whole data set."""
    data = TrainingData(conversations=dialogues(40), images=photos)
    (photos / "0.png").write_bytes(b"not an image")
    (photos / "1.png").unlink()
    lost = sum(bool({"0.png", "1.png"} & {*one.images}) for one in data.conversations)
    allowed = SkippedItems(lost / 40)
    job(assistant, photos, tmp_path / "run", data=data, skipped=allowed).run()
    assert len(allowed.items) == lost


def test_a_projector_is_not_fitted_without_images(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Text alone trains with `fit_projector` as it does without."""
    data = TrainingData(conversations=dialogues(40)[::3], images=photos)
    weights = []
    for fit in (True, False):
        start = assemble(vision_folder, language_folder, seed=3)
        stage = replace(STAGE, calibrate_projector=fit)
        trained, _ = job(start, photos, tmp_path / str(fit), stage, data=data).run()
        weights.append(trained.model.state_dict())
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "moments"),
    [((), (6.0, 7.5, 9.0, 10.5)), (("--lora", "--set", "lora.rank=3"), (8.0, 9.0))],
)
def test_a_killed_process_goes_on_bit_for_bit(
    assistant: LlavaBundle,
    photos: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    moments: tuple[float, ...],
) -> None:
    """SIGKILL at random moments, started again each time: the same model as one that was left alone."""
    save_model_folder(tmp_path / "start", assistant)
    write_conversations(tmp_path / "data.json", dialogues(40))
    command = [
        *(sys.executable, "-m", "caldera", "train", "finetune", "--dtype", "float32", "--resume"),
        *more,
        *("--model", str(tmp_path / "start"), "--data", str(tmp_path / "data.json")),
        *("--images", str(photos), "--set", "batch_size=4", "--set", "epochs=8"),
        *("--set", "save_every=3", "--set", "max_length=256", "--set", "learning_rate=1e-3"),
    ]
    subprocess.run([*command, "--out", str(tmp_path / "calm")], check=True, capture_output=True)
    for patience in moments:
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(patience)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, capture_output=True)

    calm, killed = (load_model_folder(tmp_path / name / "model") for name in ("calm", "killed"))
    for name, weight in calm.model.state_dict().items():
        assert torch.equal(killed.model.state_dict()[name], weight), name
