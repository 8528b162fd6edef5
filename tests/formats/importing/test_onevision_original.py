"""Folders of LLaVA-NeXT's own code with SigLIP and Qwen2 become the model that transformers' conversion of them is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from caldera.batches.image_sources import DecodedImages
from caldera.errors import ModelFormatError
from caldera.formats.config import build_on_meta_device
from caldera.formats.importing.import_model import import_model
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import load_model_folder
from caldera.formats.original.config import known_tower, parse_grids, without_last_layer
from caldera.images.anyres import ONEVISION_GRIDS, grid_pinpoints
from caldera.inference.prompts import PromptBuilder
from caldera.model.bundle import LlavaBundle
from caldera.model.vision_tower import VisionTower
from caldera.progress import NoProgress
from tests.tiny_onevision import PINPOINTS, SIDE, draw, question, write_onevision

_VISION = "vision_tower."
ORIGINAL_NAMES = {
    _VISION: "model.vision_tower.vision_tower.vision_model.",
    "multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "language_model.model.": "model.",
    "image_newline": "model.image_newline",
}
"""Beginnings of weights' names in transformers' folder, and in one of LLaVA-NeXT's own code."""


def original_name(name: str) -> str:
    """Return the name in LLaVA-NeXT's own code of a weight."""
    prefix = next(prefix for prefix in ORIGINAL_NAMES if name.startswith(prefix))
    return ORIGINAL_NAMES[prefix] + name.removeprefix(prefix)


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Path]:
    """The same model of transformers, of LLaVA's own code, and its tower as on the hub, with one layer more."""
    root = tmp_path_factory.mktemp("original-onevision")
    hf = write_onevision(root / "hf", tokenizer)
    weights = load_file(hf / "model.safetensors")
    original, tower = root / "original", root / "siglip"
    original.mkdir()
    tokenizer.save_pretrained(original)
    renamed = {original_name(name): weight for name, weight in weights.items()}
    save_file(renamed, original / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((hf / "config.json").read_text())
    text = {name: value for name, value in config["text_config"].items() if name != "dtype"}
    settings: dict[str, Any] = {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(6x6)",
        "image_token_index": 151646,
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-tiny",
        "use_mm_proj": True,
        "use_pos_skipping": False,
        "vision_tower_pretrained": None,
    }
    (original / "config.json").write_text(json.dumps({**text, **settings}))
    shape = {**config["vision_config"], "num_hidden_layers": 4, "vision_use_head": True}
    torch.manual_seed(5)
    model = SiglipVisionModel(SiglipVisionConfig(**shape))
    own = {
        name.removeprefix(_VISION): weight
        for name, weight in weights.items()
        if name.startswith(_VISION)
    }
    names = model.load_state_dict(own, strict=False)
    assert not names.unexpected_keys
    assert all(name.startswith(("encoder.layers.3.", "head.")) for name in names.missing_keys)
    model.save_pretrained(tower)
    processor = json.loads((hf / "processor_config.json").read_text())["image_processor"]
    settings_of_images = ("image_mean", "image_std", "size", "resample")
    (tower / "preprocessor_config.json").write_text(
        json.dumps({name: processor[name] for name in settings_of_images})
    )
    return {"hf": hf, "original": original, "siglip": tower}


def import_original(folders: dict[str, Path], out: Path, **changes: object) -> LlavaBundle:
    """Import the original folder with some of its settings changed."""
    file = folders["original"] / "config.json"
    config = file.read_text()
    file.write_text(json.dumps({**json.loads(config), **changes}))
    request = ImportRequest(
        source=folders["original"], vision=folders["siglip"], template="vicuna_v1"
    )
    try:
        import_model(request, out, NoProgress())
    finally:
        file.write_text(config)
    return load_model_folder(out)


@torch.no_grad()
def logits(assistant: LlavaBundle, images: list[Path]) -> torch.Tensor:
    """Return the logits of a question about images, (tokens, vocabulary)."""
    prompt = PromptBuilder(assistant).from_files(question(images))
    pixels = DecodedImages(assistant.processor)(prompt.images, prompt.layouts)
    embedded = assistant.model.embed(torch.tensor([prompt.ids]), pixels, prompt.layouts)
    states: torch.Tensor = assistant.model.language(inputs_embeds=embedded).logits[0]
    return states[:, :337]


@pytest.mark.parametrize("tower", ["trained", "of the hub"])
@pytest.mark.parametrize("model_type", ["llava_qwen", "llava"])
def test_logits_are_those_of_the_converted_folder(
    folders: dict[str, Path], tmp_path: Path, tower: str, model_type: str
) -> None:
    """SigLIP's own last layer is cut: a trained tower lacks it, and the hub's is taken before it."""
    request = ImportRequest(source=folders["hf"], template="vicuna_v1")
    import_model(request, tmp_path / "converted", NoProgress())
    converted = load_model_folder(tmp_path / "converted")
    parts = {} if tower == "trained" else {"mm_tunable_parts": "mm_mlp_adapter"}

    assistant = import_original(folders, tmp_path / "out", model_type=model_type, **parts)

    assert assistant.card.vision_feature_layer == (-1 if tower == "trained" else -2)
    assert assistant.card.anyres_max == 9
    assert assistant.card.pinpoints == PINPOINTS
    paths = draw(tmp_path)
    for images in ([], paths[5:6], paths[:3]):
        torch.testing.assert_close(
            logits(assistant, images), logits(converted, images), atol=1e-5, rtol=0
        )


def test_the_known_tower_is_siglip_so400m() -> None:
    """27 layers on the hub and 26 in a trained folder; 27 x 27 patches of 14 pixels, which 384 is no multiple of."""
    hub_tower = known_tower("google/siglip-so400m-patch14-384")
    assert hub_tower is not None
    config, processor = hub_tower
    cut = without_last_layer(config)
    assert (config.num_hidden_layers, cut.num_hidden_layers) == (27, 26)
    assert cut.vision_use_head is False
    tower = VisionTower(build_on_meta_device(AutoModel, cut), processor.side, -1)
    assert (tower.patches_per_side, tower.tokens_per_view, tower.num_prefix_tokens) == (27, 729, 0)
    assert processor.mean == processor.std == (0.5, 0.5, 0.5)


def test_a_range_of_grids_is_every_grid_in_it() -> None:
    """Columns from the first to the last, and rows, in LLaVA-NeXT's order."""
    file = Path("config.json")
    assert parse_grids("(1x1),...,(6x6)", SIDE, file) == grid_pinpoints(ONEVISION_GRIDS, SIDE)
    assert parse_grids("(1x2),(2x3)", 10, file) == ((10, 20), (10, 30), (20, 20), (20, 30))
    assert parse_grids([[384, 768]], 384, file) == ((384, 768),)


@pytest.mark.parametrize(
    "grids",
    [
        "(0x0),(2x2)",
        "(6x6),(1x1)",
        "(1x1),(999999999x9999999)",
        "(1x1),(100x1)",
        "(1x1),(1x" + "9" * 5000 + ")",
    ],
)
def test_a_range_of_grids_has_limits(grids: str) -> None:
    """A range that is empty, or would list billions of grids, is rejected at once, and the file is named."""
    with pytest.raises(
        ModelFormatError, match=r"config.json has image_grid_pinpoints .* 1 to 99 tiles"
    ):
        parse_grids(grids, SIDE, Path("config.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": ["llava_qwen"]}, "which is not supported: known: llava"),
        ({"image_aspect_ratio": "anyres_max"}, "known: square, pad, anyres, anyres_max_N"),
        ({"mm_patch_merge_type": "flat"}, "only spatial_unpad is supported"),
        ({"image_grid_pinpoints": "6x6"}, "must list pairs of pixels"),
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type 'spatial_pool'"),
    ],
)
def test_other_settings_are_rejected(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    """The message names the setting and what is supported."""
    with pytest.raises(ModelFormatError, match=message):
        import_original(folders, tmp_path / "out", **changes)
