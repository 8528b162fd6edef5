"""LLaVA-OneVision and LLaVA-NeXT-Interleave folders give the same pixels, prompts and logits as in transformers."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation
from caldera.errors import ModelFormatError, UsageError
from caldera.formats.image_processor import describe_pixels
from caldera.formats.importing.import_model import import_model
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.formats.open_model import load_model
from caldera.inference.prompts import PromptBuilder
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from tests.tiny_onevision import (
    PATCHES_PER_SIDE,
    PINPOINTS,
    SIZES,
    Reference,
    draw,
    question,
    write_interleave,
    write_onevision,
)

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Path]:
    """The folders of transformers, and below `NAME-caldera` what they are imported to."""
    root = tmp_path_factory.mktemp("onevision")
    written = {
        "onevision": write_onevision(root / "onevision", tokenizer),
        "interleave": write_interleave(root / "interleave", tokenizer),
    }
    for name, folder in [*written.items()]:
        written[f"{name}-caldera"] = root / f"{name}-caldera"
        request = ImportRequest(source=folder, template="vicuna_v1")
        import_model(request, written[f"{name}-caldera"], NoProgress())
    return written


@torch.no_grad()
def caldera_outputs(
    assistant: LlavaBundle, conversation: Conversation
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Return prompt ids, pixels of all views, and logits, (tokens, vocabulary)."""
    prompt = PromptBuilder(assistant).from_files(conversation)
    pixels = DecodedImages(assistant.processor)(prompt.images, prompt.layouts)
    embedded = assistant.model.embed(torch.tensor([prompt.ids]), pixels, prompt.layouts)
    return [*prompt.ids], pixels, assistant.model.language(inputs_embeds=embedded).logits[0]


@pytest.mark.parametrize("written_by", ["", "-caldera"])
@pytest.mark.parametrize("kind", ["onevision", "interleave"])
def test_outputs_are_those_of_transformers(
    folders: dict[str, Path], tmp_path: Path, kind: str, written_by: str
) -> None:
    """For text alone, each size of one image, and two to four images: ids, pixels and logits, of both folders."""
    assistant = load_model_folder(folders[f"{kind}-caldera"])
    reference = Reference(folders[f"{kind}{written_by}"])
    paths = draw(tmp_path)
    groups = [[], *([path] for path in paths), paths[:2], paths[2:5], paths[5:]]
    for images in groups:
        inputs = reference.inputs(question(images))
        ids, pixels, logits = caldera_outputs(assistant, question(images))
        assert ids == inputs["input_ids"][0].tolist()
        if images:
            expected = inputs["pixel_values"]
            # Transformers pads the views of each of several images to equal numbers.
            expected = expected[:, 0] if len(images) > 1 and kind == "onevision" else expected
            torch.testing.assert_close(pixels, expected.flatten(0, -4), atol=1e-6, rtol=0)
        torch.testing.assert_close(logits, reference.logits(inputs), atol=TOLERANCE, rtol=0)
    assert len(groups) == len(SIZES) + 4


def test_some_images_are_scaled_down(folders: dict[str, Path]) -> None:
    """The sizes of these tests include images of more than nine tiles, and others."""
    assistant = load_model_folder(folders["onevision-caldera"])
    layouts = [assistant.processor.layout(size) for size in SIZES]
    scaled = [
        layout.grid(PATCHES_PER_SIDE) != layout.raster(PATCHES_PER_SIDE) for layout in layouts
    ]
    assert 3 <= sum(scaled) <= len(SIZES) - 3


def test_a_folder_is_used_without_import(folders: dict[str, Path], tmp_path: Path) -> None:
    """Chat and serve open the folder of transformers itself, where its chat template is known."""
    template = (folders["onevision-caldera"] / "chat_template.jinja").read_text()
    (folders["onevision"] / "chat_template.jinja").write_text(template)
    opened = load_model(folders["onevision"])
    imported = load_model_folder(folders["onevision-caldera"])
    conversation = question(draw(tmp_path)[5:6])
    ids, _, logits = caldera_outputs(opened, conversation)
    assert ids == caldera_outputs(imported, conversation)[0]
    assert torch.equal(logits, caldera_outputs(imported, conversation)[2])
    assert opened.card.anyres_max == 9


def test_files_of_transformers_4_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """As on the hub: the image processor in its own file, and the tower's weights below `vision_model`."""
    source = tmp_path / "source"
    shutil.copytree(folders["onevision"], source)
    settings = json.loads((source / "processor_config.json").read_text())
    del settings["video_processor"], settings["vision_aspect_ratio"]
    pixels = settings.pop("image_processor")
    (source / "processor_config.json").write_text(json.dumps(settings))
    (source / "preprocessor_config.json").write_text(json.dumps(pixels))
    weights = load_file(source / "model.safetensors")
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in weights.items()
    }
    save_file(renamed, source / "model.safetensors", metadata={"format": "pt"})

    import_model(ImportRequest(source=source, template="vicuna_v1"), tmp_path / "m", NoProgress())

    conversation = question(draw(tmp_path)[1:2])
    first, second = (
        caldera_outputs(load_model_folder(folder), conversation)
        for folder in (tmp_path / "m", folders["onevision-caldera"])
    )
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])


HUB_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Chat template of llava-hf's folders on the hub, without that of videos."""


@pytest.mark.parametrize("write", [write_onevision, write_interleave])
def test_the_template_of_the_hub_gives_the_prompt_of_the_training(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    write: Callable[[Path, PreTrainedTokenizerFast], Path],
) -> None:
    """Its text has no system message, which both models were trained with; no --template is needed."""
    chatml = copy.deepcopy(tokenizer)
    chatml.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    folder = write(tmp_path / "source", chatml)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": HUB_TEMPLATE}))

    import_model(ImportRequest(source=folder), tmp_path / "out", NoProgress())

    assistant = load_model_folder(tmp_path / "out")
    prompt = PromptBuilder(assistant).from_files(question(draw(tmp_path)[:2]))
    assert assistant.card.template == "qwen_original"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert prompt.text.removeprefix("<s>").startswith(system)


def test_import_says_what_several_images_become(folders: dict[str, Path]) -> None:
    """They have no tiles, unlike an image alone."""
    processor = load_model_folder(folders["onevision-caldera"]).processor
    text = describe_pixels(processor)
    assert text.endswith("and 31 more; of several images, each is padded to one square")
    assert "several" not in describe_pixels(processor.with_aspect("anyres", PINPOINTS))


def test_the_metadata_hold_the_limit(folders: dict[str, Path], tmp_path: Path) -> None:
    """A saved folder keeps pinpoints and limit, and config and metadata must agree."""
    assistant = load_model_folder(folders["onevision-caldera"])
    assert assistant.card.pinpoints == PINPOINTS
    save_model_folder(tmp_path / "saved", assistant)
    loaded = load_model_folder(tmp_path / "saved")
    assert loaded.card == assistant.card
    assert loaded.processor == assistant.processor
    assert (
        json.loads((tmp_path / "saved/config.json").read_text())["video_token_index"]
        == json.loads((folders["onevision"] / "config.json").read_text())["video_token_index"]
    )
    file = tmp_path / "saved" / "caldera.json"
    file.write_text(file.read_text().replace('"anyres_max": 9', '"anyres_max": 4'))
    with pytest.raises(
        ModelFormatError, match=r"vision_aspect_ratio 'anyres_max_9', caldera\.json"
    ):
        load_model_folder(tmp_path / "saved")


def test_a_model_without_the_video_token_names_no_ordinary_token(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Transformers' default id of the video token would be another token of a large vocabulary."""
    assistant = load_model_folder(folders["interleave-caldera"])
    settings = {"image_aspect": "anyres", "pinpoints": PINPOINTS, "anyres_max": 9}
    tiled = replace(
        assistant,
        card=assistant.card.model_copy(update=settings),
        processor=assistant.processor.with_aspect("anyres", PINPOINTS, 9),
    )
    tiled.model.projector.image_newline = torch.nn.Parameter(torch.zeros(12))
    save_model_folder(tmp_path / "m", tiled)
    assert json.loads((tmp_path / "m/config.json").read_text())["video_token_index"] == -1
    inputs = Reference(tmp_path / "m").inputs(question(draw(tmp_path)[5:7]))
    assert inputs["batch_num_images"].tolist() == [2]


@pytest.mark.parametrize("aspect", ["anyres", "anyres_max_", "pad", "anyres_max_0"])
def test_another_aspect_is_rejected(folders: dict[str, Path], tmp_path: Path, aspect: str) -> None:
    """Transformers' class cannot run it either."""
    source = tmp_path / "source"
    shutil.copytree(folders["onevision"], source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vision_aspect_ratio": aspect}))
    with pytest.raises(ModelFormatError, match=f"vision_aspect_ratio '{aspect}'; supported"):
        import_model(
            ImportRequest(source=source, template="vicuna_v1"), tmp_path / "out", NoProgress()
        )


def test_the_aspect_cannot_be_changed_by_import(folders: dict[str, Path], tmp_path: Path) -> None:
    """A model made for tiles keeps them."""
    request = ImportRequest(source=folders["onevision"], template="vicuna_v1", aspect="pad")
    with pytest.raises(UsageError, match="has the image aspect 'anyres_max_9'"):
        import_model(request, tmp_path / "out", NoProgress())
