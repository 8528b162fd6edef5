"""Commands for models: recipes, training with an adapter, chat, parity and export."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from tests.cli.conftest import CommandResult


def test_recipes_are_listed_and_described(call: Callable[..., CommandResult]) -> None:
    """All recipes are in the table and in the JSON; one recipe is printed with all its sources."""
    listed = call("recipes")
    assert listed.returncode == 0, listed.stderr
    described = json.loads(call("recipes", "--json").stdout)
    assert len(described) == 11
    assert all(recipe["name"] in listed.stdout for recipe in described)
    assert "6.74 B" in listed.stdout
    [llava] = [recipe for recipe in described if recipe["name"] == "llava_15_7b"]
    assert json.loads(call("recipes", "llava_15_7b", "--json").stdout) == llava
    full = call("recipes", "llava_15_7b").stdout
    assert all(setting["name"] in full for setting in llava["settings"])
    assert {"arXiv", "2310.03744,", "table", "9"} <= set(full.split())
    assert "blip_laion_cc_sbu_558k.json" in full


def test_an_adapter_is_merged_only_into_its_base(
    call: Callable[..., CommandResult], assistant: LlavaBundle, coco: Path, tmp_path: Path
) -> None:
    """--lora trains factors; the adapter merges to the run's model, another base is rejected by its digest."""
    save_model_folder(tmp_path / "start", assistant)
    call("data", "generate", "coco", coco, "--out", tmp_path / "data.json")
    trained = call(
        *("train", "finetune", "--model", tmp_path / "start", "--data", tmp_path / "data.json"),
        *("--out", tmp_path / "run", "--lora", "--set", "lora.rank=3", "--set", "max_steps=2"),
        *("--set", "batch_size=4", "--set", "max_length=2000", "--dtype", "float32"),
    )
    assert trained.returncode == 0, trained.stderr
    stage = json.loads((tmp_path / "run" / "stage.json").read_text())
    assert (stage["learning_rate"], stage["lora"]["rank"]) == (2e-4, 3)
    assert stage["lora"]["alpha"] == 256
    words = ("train", "merge", tmp_path / "run" / "adapter", "--out", tmp_path / "merged")

    rejected = call(*words, "--model", tmp_path / "run" / "model")
    assert rejected.returncode == 3
    assert re.search("sha256 [0-9a-f]{64}, .*[0-9a-f]{64}", rejected.stderr)
    assert not (tmp_path / "merged").exists()

    merged = call(*words, "--model", tmp_path / "start")
    assert merged.returncode == 0, merged.stderr
    for file in (tmp_path / "run" / "model").iterdir():
        assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes(), file.name
    assert "exists; choose another --out" in call(*words, "--model", tmp_path / "start").stderr
    chat = call("chat", tmp_path / "run" / "adapter", "--prompt", "hi")
    assert chat.returncode == 3
    assert "is an adapter, which needs its base" in chat.stderr


def test_chat_rejects_invalid_questions(
    call: Callable[..., CommandResult], assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """A ninth image and an empty prompt are usage errors of one line; nothing is answered."""
    save_model_folder(tmp_path / "m", assistant)
    nine = [word for _ in range(9) for word in ("--image", photos / "1.png")]
    for words, message in (
        ((*nine, "--prompt", "what?"), "9 images are shown together, over the limit of 8"),
        (("--prompt", ""), "the question is empty"),
        (("--image", photos / "1.png", "--prompt", " "), "the question is empty"),
    ):
        result = call("chat", tmp_path / "m", *words)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert result.stdout == ""


def test_chat_answers_once_on_stdout(
    call: Callable[..., CommandResult], assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """With --prompt only the answer is printed, the same for every seed."""
    save_model_folder(tmp_path / "m", assistant)
    words = ("chat", tmp_path / "m", "--image", photos / "1.png", "--prompt", "what is this?")
    first, second = (call(*words, "--max-new-tokens", "9", "--seed", seed) for seed in "12")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert first.stdout == second.stdout
    assert first.stderr == ""


def test_parity_prints_good_or_the_difference(
    tmp_path: Path, assistant: LlavaBundle, photos: Path, call: Callable[..., CommandResult]
) -> None:
    """The output has a table of stages and a verdict, --json writes a file; a difference is exit code 8."""
    save_model_folder(tmp_path / "m", assistant)
    options = (
        "--against",
        "transformers",
        "--images",
        photos / "2.png",
        "--json",
        tmp_path / "p.json",
    )
    good = call("parity", tmp_path / "m", *options)
    assert good.returncode == 0, good.stderr
    assert "good: transformers agrees with caldera, 1 of 1 answers are equal" in good.stdout
    assert json.loads((tmp_path / "p.json").read_text())["good"] is True

    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    # transformers reads this one; caldera's card still has gelu.
    settings["projector_hidden_act"] = "relu"
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    bad = call("parity", tmp_path / "m", *options)
    assert bad.returncode == 8
    assert "error: image tokens differ by" in bad.stderr
    assert json.loads((tmp_path / "p.json").read_text())["good"] is False


def test_export_options_have_exact_names(
    tmp_path: Path, call: Callable[..., CommandResult]
) -> None:
    """The error for an unknown name suggests the nearest."""
    for words, expected in (
        (("--to", "ggfu"), "gguf"),
        (("--to", "gguf", "--type", "q8"), "q8_0"),
        (("--to", "gguf", "--class-token", "lats"), "last"),
    ):
        result = call("export", tmp_path / "m", "--out", tmp_path / "o", *words)
        assert result.returncode == 2
        assert f"did you mean '{expected}'?" in result.stderr
