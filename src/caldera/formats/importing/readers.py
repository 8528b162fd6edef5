"""Readers of source folders, one for each layout."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModel

from caldera.errors import ModelFormatError, UnknownNameError, UsageError
from caldera.formats import weight_names
from caldera.formats.config import build_on_meta_device, read_config, sub_config
from caldera.formats.importing.llava_hf import read_llava_hf
from caldera.formats.importing.request import ImportRequest
from caldera.formats.importing.sources import (
    SourceModel,
    SourceTower,
    build_metadata,
    detect_projector,
    join_original,
    read_tower,
    resolve_aspect,
    resolve_vision_tower,
    with_metadata_aspect,
)
from caldera.formats.model_paths import ADAPTER_FILES, NON_LORA_FILE, PROJECTOR_FILE
from caldera.formats.original.config import OriginalSettings, parse_grids, read_original
from caldera.formats.safetensors_files import from_memory
from caldera.formats.sentencepiece_model import SENTENCEPIECE_FILE
from caldera.formats.tokenizer import TOKENIZER_FILE, load_tokenizer
from caldera.formats.weight_files import Source, read_file, read_folder, read_one_of
from caldera.formats.weight_merging import add_delta, grow_embeddings, merge_lora
from caldera.formats.weight_names import LANGUAGE, PROJECTOR, stored_dtype
from caldera.model.bundle import ModelMetadata
from caldera.model.projector import PROJECTORS, build_projector
from caldera.model.vision_tower import VisionTower
from caldera.scenes.backbones import find_backbone


def _read_hf(request: ImportRequest) -> SourceModel:
    """Read a llava-hf folder."""
    assert request.source
    request.reject_options("base", "vision", "vocab-multiple")
    return read_llava_hf(request.source, request.template, request.aspect)


def _read_full(request: ImportRequest) -> SourceModel:
    """Read an original folder with complete weights."""
    assert request.source
    request.reject_options("base")
    source = read_folder(request.source)
    weights = weight_names.rename_weights(
        source.weights, weight_names.from_original, request.source
    )
    return _build_original(request, Source(weights, source.files))


def _read_delta(request: ImportRequest) -> SourceModel:
    """Read delta weights, and add them to their base."""
    assert request.source
    base, change = _read_base(request), read_folder(request.source)
    delta = weight_names.rename_weights(change.weights, weight_names.from_original, request.source)
    weights = add_delta(base.weights, delta, request.source)
    return _build_original(request, Source(weights, change.files), base.files)


def _read_projector(request: ImportRequest) -> SourceModel:
    """Read the result of stage 1: a projector, next to its base."""
    assert request.source
    base, file = _read_base(request), request.source / PROJECTOR_FILE
    source = read_file(file)
    projector = weight_names.rename_weights(source.weights, weight_names.from_projector_file, file)
    weights = {**base.weights, **projector}
    return _build_original(request, Source(weights, source.files), base.files)


def _read_lora(request: ImportRequest) -> SourceModel:
    """Read an adapter with the weights that were trained in full, and merge it into its base."""
    assert request.source
    base, file = _read_base(request), request.source / NON_LORA_FILE
    if not file.exists():
        raise ModelFormatError(
            f"{request.source} has no {NON_LORA_FILE}, so no projector; LLaVA writes it only when training ends"
        )
    trained = read_file(file)
    factors = read_one_of(request.source, *ADAPTER_FILES)
    non_lora = weight_names.rename_weights(
        trained.weights, weight_names.from_non_lora_trainables, file
    )
    weights = merge_lora(
        {**base.weights, **non_lora}, factors.weights, request.source, weight_names.from_original
    )
    return _build_original(request, Source(weights, trained.files + factors.files), base.files)


def _build_original(
    request: ImportRequest, source: Source, base: tuple[Path, ...] = ()
) -> SourceModel:
    """Join an original folder's weights, by llava-hf's names, with its vision tower and its or its base's tokenizer."""
    folder = request.source
    assert folder
    settings = read_original(read_config(folder), folder / "config.json")
    tower = resolve_vision_tower(folder, settings, source.weights, request.vision)
    metadata = _original_metadata(request, settings, tower)
    has_tokenizer = any((folder / name).is_file() for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE))
    tokenizer = load_tokenizer(request.base if request.base and not has_tokenizer else folder)
    tokenizer.chat_template = None  # a program in the folder; caldera writes its own
    model = join_original(
        folder, settings, source, tokenizer, tower, metadata, request.grown_multiple
    )
    return replace(model, files={**model.files, "base": base})


def _original_metadata(
    request: ImportRequest, settings: OriginalSettings, tower: SourceTower
) -> ModelMetadata:
    """Return the metadata of an original folder."""
    assert request.source
    file = request.source / "config.json"
    aspect = resolve_aspect(request.source, settings.aspect, request.aspect)
    return build_metadata(
        file,
        projector=settings.projector,
        template=request.require_template,
        aspect=aspect,
        vision_feature_layer=tower.feature_layer or settings.vision_feature_layer,
        feature_select=settings.feature_select,
        pinpoints=parse_grids(settings.grids, tower.processor.side, file)
        if aspect.startswith("anyres")
        else (),
    )


def _read_base(request: ImportRequest) -> Source:
    """List the weights of the base: a language model, or an original LLaVA."""
    if request.base is None:
        raise UsageError(
            f"{request.source} needs a language model that it does not hold; give its folder with --base"
        )
    read_config(request.base)  # rejects settings that run code
    source = read_folder(request.base)
    weights = weight_names.rename_weights(source.weights, weight_names.from_original, request.base)
    return Source(weights, source.files)


def _read_two_towers(request: ImportRequest) -> SourceModel:
    """Join a vision tower and a language model by a projector."""
    assert request.vision
    assert request.language
    request.reject_options("base")
    vision = find_backbone(str(request.vision))
    language_folder = find_backbone(str(request.language))
    tower, source = read_tower(vision), read_folder(language_folder)
    config = sub_config(
        {"text_config": read_config(language_folder)},
        "text_config",
        language_folder / "config.json",
    )
    tokenizer = load_tokenizer(language_folder)
    tokenizer.chat_template = None
    renamed = weight_names.rename_weights(source.weights, str, language_folder)
    language_weights = {LANGUAGE + name: weight for name, weight in renamed.items()}
    projector = _read_or_init_projector(
        request, tower, config.hidden_size, stored_dtype(source.weights)
    )
    weights, language = grow_embeddings(
        language_weights, config, tokenizer, language_folder, request.grown_multiple
    )
    metadata = build_metadata(
        vision,
        projector=detect_projector(projector.weights, Path(request.projector)),
        template=request.template or "vicuna_v1",
        aspect=resolve_aspect(vision, tower.processor.aspect, request.aspect),
    )
    return SourceModel(
        tower.config,
        language,
        tokenizer,
        with_metadata_aspect(tower.processor, metadata, vision),
        metadata,
        weights={**tower.weights, **projector.weights, **weights},
        files={"vision": tower.files, "language": source.files, "projector": projector.files},
    )


def _read_or_init_projector(
    request: ImportRequest, tower: SourceTower, width: int, dtype: torch.dtype
) -> Source:
    """Return a projector's weights: a file's, or fresh ones."""
    file = Path(request.projector)
    if request.projector not in PROJECTORS and file.is_file():
        source = read_file(file)
        weights = weight_names.rename_weights(
            source.weights, weight_names.from_projector_file, file
        )
        return Source(
            weight_names.rename_weights(weights, weight_names.from_llava_hf, file), source.files
        )
    if request.projector not in PROJECTORS:
        raise UnknownNameError("projector or projector file", request.projector, PROJECTORS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        fresh = build_projector(request.projector, _feature_width(tower), width)
    state = fresh.to(dtype).state_dict()
    return Source({PROJECTOR + name: from_memory(tensor) for name, tensor in state.items()}, ())


def _feature_width(tower: SourceTower) -> int:
    """Return the width of a tower's features, which is no setting of all configs."""
    with torch.device("meta"):
        model = build_on_meta_device(AutoModel, tower.config)
        return VisionTower(model, tower.processor.side).width


LAYOUT_READERS: dict[str, Callable[[ImportRequest], SourceModel]] = {
    "hf": _read_hf,
    "full": _read_full,
    "delta": _read_delta,
    "projector": _read_projector,
    "lora": _read_lora,
    "joined": _read_two_towers,
}
"""Reader of each layout."""
