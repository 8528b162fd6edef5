"""A request to import in, the model on its way in out: one reader for each kind of folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from caldera.errors import ModelFormatError, UnknownNameError, UsageError
from caldera.formats import weight_names
from caldera.formats.config import read_config, sub_config
from caldera.formats.importing.request import (
    ADAPTER_FILES,
    NON_LORA_FILE,
    PROJECTOR_FILE,
    ImportRequest,
)
from caldera.formats.importing.sources import (
    SourceModel,
    SourceTower,
    detect_projector,
    join_original,
    make_card,
    read_llava_hf,
    read_original_settings,
    read_tower,
    resolve_aspect,
    resolve_vision_tower,
    with_metadata_aspect,
)
from caldera.formats.original.config import OriginalSettings
from caldera.formats.safetensors_files import from_memory
from caldera.formats.tokenizer import SENTENCEPIECE_FILE, TOKENIZER_FILE, load_tokenizer
from caldera.formats.weight_files import Source, read_file, read_folder, read_one_of
from caldera.formats.weight_merging import add_delta, grow_embeddings, merge_lora
from caldera.formats.weight_names import LANGUAGE, PROJECTOR, stored_dtype
from caldera.model.assistant import ModelMetadata
from caldera.model.projector import PROJECTORS, build_projector
from caldera.scenes.backbones import find_backbone


def _read_hf(what: ImportRequest) -> SourceModel:
    """Read a llava-hf folder."""
    assert what.source
    what.reject_options("base", "vision")
    return read_llava_hf(what.source, what.require_template, what.aspect)


def _read_full(what: ImportRequest) -> SourceModel:
    """Read an original folder with whole weights."""
    assert what.source
    what.reject_options("base")
    source = read_folder(what.source)
    weights = weight_names.rename_weights(source.weights, weight_names.from_original, what.source)
    return _build_original(what, Source(weights, source.files))


def _read_delta(what: ImportRequest) -> SourceModel:
    """Read what changed in a base, and add it (spec 3.6)."""
    assert what.source
    base, change = _read_base(what), read_folder(what.source)
    delta = weight_names.rename_weights(change.weights, weight_names.from_original, what.source)
    whole = add_delta(base.weights, delta, what.source)
    return _build_original(what, Source(whole, change.files), base.files)


def _read_projector(what: ImportRequest) -> SourceModel:
    """Read what stage 1 leaves: a projector beside a base."""
    assert what.source
    base, file = _read_base(what), what.source / PROJECTOR_FILE
    source = read_file(file)
    bridge = weight_names.rename_weights(source.weights, weight_names.from_projector_file, file)
    return _build_original(what, Source({**base.weights, **bridge}, source.files), base.files)


def _read_lora(what: ImportRequest) -> SourceModel:
    """Read an adapter with the weights that were trained beside it, and fold it into its base."""
    assert what.source
    base = _read_base(what)
    if not (what.source / NON_LORA_FILE).exists():
        raise ModelFormatError(
            f"{what.source} has no {NON_LORA_FILE}, so no projector; LLaVA writes it only when training ends"
        )
    trained = read_file(what.source / NON_LORA_FILE)
    factors = read_one_of(what.source, *ADAPTER_FILES)
    beside = weight_names.rename_weights(
        trained.weights, weight_names.from_non_lora_trainables, what.source / NON_LORA_FILE
    )
    start = {**base.weights, **beside}
    whole = merge_lora(start, factors.weights, what.source, weight_names.from_original)
    files = trained.files + factors.files
    return _build_original(what, Source(whole, files), base.files)


def _build_original(
    what: ImportRequest, source: Source, base: tuple[Path, ...] = ()
) -> SourceModel:
    """Join an original folder's weights, by llava-hf's names, with its vision tower and its or its base's tokenizer."""
    assert what.source
    settings = read_original_settings(what.source)
    card = _original_card(what, settings)
    tower = resolve_vision_tower(what.source, settings, source.weights, what.vision)
    own = any((what.source / name).is_file() for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE))
    tokenizer = load_tokenizer(what.base if what.base and not own else what.source)
    tokenizer.chat_template = None  # a program in the folder; caldera writes its own
    incoming = join_original(what.source, settings, source, tokenizer, tower, card)
    return replace(incoming, files={**incoming.files, "base": base})


def _original_card(what: ImportRequest, settings: OriginalSettings) -> ModelMetadata:
    """Return the card of an original folder."""
    assert what.source
    aspect = resolve_aspect(what.source, settings.aspect, what.aspect)
    return make_card(
        what.source / "config.json",
        projector=settings.projector,
        template=what.require_template,
        aspect=aspect,
        select_layer=settings.select_layer,
        select=settings.select,
        pinpoints=settings.pinpoints if aspect == "anyres" else (),
    )


def _read_base(what: ImportRequest) -> Source:
    """List the weights of a language model, or of an original LLaVA, that others stand on.

    Raises:
        UsageError: None is given.
    """
    if what.base is None:
        raise UsageError(
            f"{what.source} stands on a language model that it does not hold; give its folder with --base"
        )
    read_config(what.base)  # refuses what would run code
    source = read_folder(what.base)
    return Source(
        weight_names.rename_weights(source.weights, weight_names.from_original, what.base),
        source.files,
    )


def _read_two_towers(what: ImportRequest) -> SourceModel:
    """Join a vision tower and a language model by a projector."""
    assert what.vision
    assert what.language
    what.reject_options("base")
    vision, language_folder = find_backbone(str(what.vision)), find_backbone(str(what.language))
    tower, source = read_tower(vision), read_folder(language_folder)
    config = sub_config(
        {"text_config": read_config(language_folder)},
        "text_config",
        language_folder / "config.json",
    )
    tokenizer = load_tokenizer(language_folder)
    tokenizer.chat_template = None
    words = {
        LANGUAGE + name: each
        for name, each in weight_names.rename_weights(source.weights, str, language_folder).items()
    }
    bridge = _read_or_init_projector(what, tower, config.hidden_size, stored_dtype(source.weights))
    weights, language = grow_embeddings(words, config, tokenizer, language_folder)
    card = make_card(
        vision,
        projector=detect_projector(bridge.weights, Path(what.projector)),
        template=what.template or "vicuna_v1",
        aspect=resolve_aspect(vision, tower.processor.aspect, what.aspect),
    )
    files = {"vision": tower.files, "language": source.files, "projector": bridge.files}
    parts = (
        tower.config,
        language,
        tokenizer,
        with_metadata_aspect(tower.processor, card, vision),
        card,
    )
    return SourceModel(*parts, {**tower.weights, **bridge.weights, **weights}, files)


def _read_or_init_projector(
    what: ImportRequest, tower: SourceTower, width: int, dtype: torch.dtype
) -> Source:
    """Return a projector's weights: fresh, or a file's.

    Raises:
        UnknownNameError: There is no such projector or file.
    """
    file = Path(what.projector)
    if what.projector not in PROJECTORS and file.is_file():
        source = read_file(file)
        theirs = weight_names.rename_weights(source.weights, weight_names.from_projector_file, file)
        return Source(
            weight_names.rename_weights(theirs, weight_names.from_llava_hf, file), source.files
        )
    if what.projector not in PROJECTORS:
        raise UnknownNameError("projector or file of one", what.projector, PROJECTORS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(what.seed)
        fresh = build_projector(what.projector, tower.config.hidden_size, width)
    state = fresh.to(dtype).state_dict()
    return Source({PROJECTOR + name: from_memory(each) for name, each in state.items()}, ())


LAYOUT_READERS: dict[str, Callable[[ImportRequest], SourceModel]] = {
    "hf": _read_hf,
    "full": _read_full,
    "delta": _read_delta,
    "projector": _read_projector,
    "lora": _read_lora,
    "joined": _read_two_towers,
}
"""How each kind of folder is read."""
