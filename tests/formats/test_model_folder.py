"""A saved model folder loads unchanged, also in transformers, and is rejected if anything does not fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    GraniteConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import ModelFormatError
from caldera.formats.assemble import assemble
from caldera.formats.image_processor import load_processor
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.formats.safetensors_files import from_memory
from caldera.formats.weight_names import load_into
from caldera.images.anyres import SINGLE_VIEW, ImageAspect
from caldera.model.bundle import LlavaBundle
from caldera.templates.encoding import encode
from caldera.templates.registry import VICUNA_SYSTEM, find_template

WIDTHS: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 22,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def question(count: int) -> Conversation:
    """Return a question about `count` images."""
    images = tuple(ImageRef(f"{number}.png") for number in range(count))
    return Conversation("q", (Turn("user", (*images, "\nwhat is there?" if count else "what?")),))


@torch.no_grad()
def logits(assistant: LlavaBundle, photos: Path, count: int) -> torch.Tensor:
    """Return caldera's logits for a question about `count` images."""
    encoded = encode(find_template("vicuna_v1").render(question(count)), assistant.tokenizer)
    model = assistant.model
    encoded = encoded.with_image_tokens(
        [model.vision.tokens_per_view] * count, model.image_token_id
    )
    pixels = DecodedImages(assistant.processor)([photos / path for path in encoded.image_paths])
    embedded = model.embed(torch.tensor([encoded.ids]), pixels, [SINGLE_VIEW] * count)
    return model.language(inputs_embeds=embedded).logits[0]


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
def test_a_saved_folder_loads_unchanged(
    tmp_path: Path, photos: Path, vision_folder: Path, language_folder: Path, projector: str
) -> None:
    """Weights, metadata, tokenizer and image processor are the same; the folder's name does not matter."""
    saved = assemble(vision_folder, language_folder, projector=projector, aspect="pad", seed=3)
    save_model_folder(tmp_path / "any name at all", saved)

    loaded = load_model_folder(tmp_path / "any name at all")

    assert loaded.card == saved.card
    assert loaded.processor == saved.processor
    assert torch.equal(logits(loaded, photos, 2), logits(saved, photos, 2))


@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_the_image_processor_is_read_with_and_without_metadata(
    tmp_path: Path, vision_folder: Path, language_folder: Path, aspect: ImageAspect
) -> None:
    """The processor file by itself gives the image aspect."""
    saved = assemble(vision_folder, language_folder, aspect=aspect, seed=3)
    save_model_folder(tmp_path / "m", saved)
    assert load_processor(tmp_path / "m") == saved.processor
    assert load_processor(tmp_path / "m", saved.card) == saved.processor


@pytest.mark.parametrize("aspect", ["square", "pad"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_transformers_gives_the_same_logits(
    tmp_path: Path,
    photos: Path,
    vision_folder: Path,
    language_folder: Path,
    count: int,
    aspect: ImageAspect,
) -> None:
    """LLaVA's own class and processor in transformers load the folder, and agree in fp32 for 0, 1 and 3 images."""
    assistant = assemble(vision_folder, language_folder, aspect=aspect, seed=3)
    save_model_folder(tmp_path / "m", assistant)
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    reference, report = loaded
    processor = LlavaProcessor.from_pretrained(tmp_path / "m")
    text = "<image>" * count + question(count).turns[0].text
    prompt = f"{VICUNA_SYSTEM} USER: {text} ASSISTANT:"
    images = [Image.open(photos / f"{number}.png") for number in range(count)]
    assert all(image.width != image.height for image in images)

    inputs = processor(images=images or None, text=prompt, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**inputs).logits[0]

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits(assistant, photos, count), expected, atol=1e-5, rtol=0)


def test_transformers_rejects_models_that_it_cannot_express(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """Transformers rejects a folder with a single linear projector instead of loading half of it."""
    save_model_folder(tmp_path / "m", assemble(vision_folder, language_folder, projector="linear"))
    with pytest.raises(KeyError, match="single linear projector"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="caldera_llava"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (GraniteConfig(**WIDTHS, logits_scaling=7.0), "transforms its logits"),
        (GPT2Config(n_embd=12, n_layer=1, n_head=2), "parts have other names"),
    ],
)
def test_transformers_rejects_language_models_that_its_class_would_change(
    tmp_path: Path,
    vision_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    shape: PretrainedConfig,
    reason: str,
) -> None:
    """Such a folder loads in caldera, and does not load in transformers with other logits or random weights."""
    shape.update({"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2})
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")

    save_model_folder(tmp_path / "m", assemble(vision_folder, tmp_path / "language"))

    assert load_model_folder(tmp_path / "m").model.language.config.model_type == shape.model_type
    with pytest.raises(KeyError, match=reason):
        LlavaForConditionalGeneration.from_pretrained(tmp_path / "m")


def broken_weights(folder: Path, change: str) -> None:
    """Damage the weights of a folder in one way."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "multi_modal_projector.linear_1.weight"
    match change:
        case "missing":
            del weights[name]
        case "surplus":
            weights["language_model.model.extra"] = torch.zeros(3)
        case "stray":
            weights["model.vision_tower.extra"] = torch.zeros(3)
        case "shape":
            weights[name] = torch.zeros(3, 5)
    save_file(weights, file)
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"projector: missing \['linear_1.weight'\]"),
        ("surplus", r"unexpected \['model.extra'\]"),
        ("stray", r"hold \['model.vision_tower.extra'\], which belong to no part"),
        (
            "shape",
            r"linear_1.weight of the projector in .* has shape \(3, 5\); it needs \(12, 10\)",
        ),
        ("cut", "is broken or truncated"),
    ],
)
def test_weights_that_do_not_fit_are_rejected(
    tmp_path: Path, assistant: LlavaBundle, change: str, message: str
) -> None:
    """One line names the weight."""
    save_model_folder(tmp_path / "m", assistant)
    broken_weights(tmp_path / "m", change)
    with pytest.raises(ModelFormatError, match=message) as caught:
        load_model_folder(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "would run code"),
        ("config.json", {"image_token_index": 5}, "has image token 5"),
        ("config.json", {"vision_feature_layer": -1}, "has vision_feature_layer -1, .* means -2"),
        (
            "config.json",
            {"vision_feature_select_strategy": "full"},
            "has vision_feature_select_strategy 'full', .* means 'default'",
        ),
        ("caldera.json", {"feature_select": "cls_patch"}, "they must agree"),
        ("config.json", {"text_config": {"model_type": "no-such"}}, "'text_config'"),
        ("caldera.json", {"surprise": 1}, "surprise"),
        ("caldera.json", {"image_aspect": "round"}, "image_aspect: .*got 'round'"),
        (
            "caldera.json",
            {"select": "patch"},
            "'select' is the former name of 'feature_select'; remove one of the two",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_rejected(
    tmp_path: Path, assistant: LlavaBundle, file: str, change: dict[str, object], message: str
) -> None:
    """No code of the folder is run, and the message names the invalid field."""
    save_model_folder(tmp_path / "m", assistant)
    path = tmp_path / "m" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFormatError, match=message):
        load_model_folder(tmp_path / "m")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_stored_in_their_dtype_are_not_copied(
    assistant: LlavaBundle, dtype: torch.dtype
) -> None:
    """A loaded model uses the memory that its weights were read into; other dtypes are converted."""
    language = assistant.model.language
    weights = {name: from_memory(tensor) for name, tensor in language.state_dict().items()}
    loaded = load_into(language, weights, dtype).state_dict()
    shared = [
        loaded[name].data_ptr() == weight.read().data_ptr() for name, weight in weights.items()
    ]
    assert len(shared) == 21
    assert all(shared) if dtype == torch.float32 else not any(shared)
    assert {tensor.dtype for tensor in loaded.values()} == {dtype}


def test_a_tokenizer_without_image_token_is_rejected(
    tmp_path: Path, assistant: LlavaBundle, language_folder: Path
) -> None:
    """The message names the language model's own tokenizer, with and without <unk>."""
    save_model_folder(tmp_path / "m", assistant)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(language_folder / name, tmp_path / "m" / name)
    with pytest.raises(ModelFormatError, match="/m has no token '<image>'"):
        load_model_folder(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    without = {name: value for name, value in config.items() if name != "unk_token"}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(without))
    with pytest.raises(ModelFormatError, match="/m has no token '<image>'"):
        load_model_folder(tmp_path / "m")


def test_an_index_that_points_outside_is_rejected(tmp_path: Path, assistant: LlavaBundle) -> None:
    """A shard named ../x is not opened."""
    save_model_folder(tmp_path / "m", assistant)
    index = {"weight_map": {"a": "../stolen.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFormatError, match="outside the folder"):
        load_model_folder(tmp_path / "m")


def test_other_folders_are_rejected(tmp_path: Path) -> None:
    """A missing folder and an unrelated folder get one line each."""
    with pytest.raises(ModelFormatError, match="is not a folder"):
        load_model_folder(tmp_path / "nowhere")
    with pytest.raises(ModelFormatError, match=r"has no caldera\.json"):
        load_model_folder(tmp_path)


SAVING_WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from caldera.errors import OutputError
from caldera.formats.model_folder import load_model_folder, save_model_folder
assistant = load_model_folder(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_model_folder(Path(sys.argv[1]), assistant)
except OutputError as error:
    print(error)
"""


def test_a_full_disk_keeps_the_old_folder(tmp_path: Path, assistant: LlavaBundle) -> None:
    """If the disk is full, the old folder is unchanged, nothing else is left, and one line reports it."""
    folder = tmp_path / "m"
    save_model_folder(folder, assistant)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before["model.safetensors"]) > 20_000

    finished = subprocess.run(
        [sys.executable, "-c", SAVING_WITHOUT_ROOM, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert finished.stdout == (
        f"cannot write {folder}: File too large; free space or choose another path, then run again\n"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
