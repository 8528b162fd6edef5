"""A request to import in, the model on its way in out: one reader for each kind of folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from caldera.errors import ModelFolderError, UnknownNameError, UsageError
from caldera.model import names
from caldera.model.card import Card
from caldera.model.config import part_config, read_config
from caldera.model.merging import with_delta, with_factors
from caldera.model.original_settings import OriginalSettings
from caldera.model.projector import PROJECTORS, build_projector
from caldera.model.tensor_files import held
from caldera.model.tokenizer import FAST, SENTENCES, load_tokenizer
from caldera.model.weight_sources import Source, read_file, read_folder, read_one_of
from caldera.model.weights import LANGUAGE, PROJECTOR, stored_dtype
from caldera.recipes.growing import grow
from caldera.recipes.import_request import ADAPTERS, PROJECTOR_FILE, TRAINABLES_FILE, Import
from caldera.recipes.incoming import (
    Incoming,
    Tower,
    choose_aspect,
    join_original,
    make_card,
    original_tower,
    projector_kind,
    read_llava_hf,
    read_original_settings,
    read_tower,
    shown_as,
)
from caldera.scenes.backbones import find_backbone


def _read_hf(what: Import) -> Incoming:
    """Read a llava-hf folder."""
    assert what.source
    what.refuse("base", "vision")
    return read_llava_hf(what.source, what.needed_template, what.aspect)


def _read_full(what: Import) -> Incoming:
    """Read an original folder with whole weights."""
    assert what.source
    what.refuse("base")
    source = read_folder(what.source)
    weights = names.renamed(source.weights, names.from_original, what.source)
    return _original(what, Source(weights, source.files))


def _read_delta(what: Import) -> Incoming:
    """Read what changed in a base, and add it (spec 3.6)."""
    assert what.source
    base, change = _base(what), read_folder(what.source)
    delta = names.renamed(change.weights, names.from_original, what.source)
    whole = with_delta(base.weights, delta, what.source)
    return _original(what, Source(whole, change.files), base.files)


def _read_projector(what: Import) -> Incoming:
    """Read what stage 1 leaves: a projector beside a base."""
    assert what.source
    base, file = _base(what), what.source / PROJECTOR_FILE
    source = read_file(file)
    bridge = names.renamed(source.weights, names.from_projector_file, file)
    return _original(what, Source({**base.weights, **bridge}, source.files), base.files)


def _read_lora(what: Import) -> Incoming:
    """Read an adapter with the weights that were trained beside it, and fold it into its base."""
    assert what.source
    base = _base(what)
    if not (what.source / TRAINABLES_FILE).exists():
        raise ModelFolderError(
            f"{what.source} has no {TRAINABLES_FILE}, so no projector; LLaVA writes it only when training ends"
        )
    trained = read_file(what.source / TRAINABLES_FILE)
    factors = read_one_of(what.source, *ADAPTERS)
    beside = names.renamed(trained.weights, names.from_trainables, what.source / TRAINABLES_FILE)
    start = {**base.weights, **beside}
    whole = with_factors(start, factors.weights, what.source, names.from_original)
    files = trained.files + factors.files
    return _original(what, Source(whole, files), base.files)


def _original(what: Import, source: Source, base: tuple[Path, ...] = ()) -> Incoming:
    """Join an original folder's weights, by llava-hf's names, with its vision tower and its or its base's tokenizer."""
    assert what.source
    settings = read_original_settings(what.source)
    card = _original_card(what, settings)
    tower = original_tower(what.source, settings, source.weights, what.vision)
    own = any((what.source / name).is_file() for name in (FAST, SENTENCES))
    tokenizer = load_tokenizer(what.base if what.base and not own else what.source)
    tokenizer.chat_template = None  # a program in the folder; caldera writes its own
    incoming = join_original(what.source, settings, source, tokenizer, tower, card)
    return replace(incoming, files={**incoming.files, "base": base})


def _original_card(what: Import, settings: OriginalSettings) -> Card:
    """Return the card of an original folder."""
    assert what.source
    aspect = choose_aspect(what.source, settings.aspect, what.aspect)
    return make_card(
        what.source / "config.json",
        projector=settings.projector,
        template=what.needed_template,
        aspect=aspect,
        select_layer=settings.select_layer,
        select=settings.select,
        pinpoints=settings.pinpoints if aspect == "anyres" else (),
    )


def _base(what: Import) -> Source:
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
    return Source(names.renamed(source.weights, names.from_original, what.base), source.files)


def _read_joined(what: Import) -> Incoming:
    """Join a vision tower and a language model by a projector."""
    assert what.vision
    assert what.language
    what.refuse("base")
    vision, language_folder = find_backbone(str(what.vision)), find_backbone(str(what.language))
    tower, source = read_tower(vision), read_folder(language_folder)
    config = part_config(
        {"text_config": read_config(language_folder)},
        "text_config",
        language_folder / "config.json",
    )
    tokenizer = load_tokenizer(language_folder)
    tokenizer.chat_template = None
    words = {
        LANGUAGE + name: each
        for name, each in names.renamed(source.weights, str, language_folder).items()
    }
    bridge = _bridge(what, tower, config.hidden_size, stored_dtype(source.weights))
    weights, language = grow(words, config, tokenizer, language_folder)
    card = make_card(
        vision,
        projector=projector_kind(bridge.weights, Path(what.projector)),
        template=what.template or "vicuna_v1",
        aspect=choose_aspect(vision, tower.processor.aspect, what.aspect),
    )
    files = {"vision": tower.files, "language": source.files, "projector": bridge.files}
    parts = (tower.config, language, tokenizer, shown_as(tower.processor, card, vision), card)
    return Incoming(*parts, {**tower.weights, **bridge.weights, **weights}, files)


def _bridge(what: Import, tower: Tower, width: int, dtype: torch.dtype) -> Source:
    """Return a projector's weights: fresh, or a file's.

    Raises:
        UnknownNameError: There is no such projector or file.
    """
    file = Path(what.projector)
    if what.projector not in PROJECTORS and file.is_file():
        source = read_file(file)
        theirs = names.renamed(source.weights, names.from_projector_file, file)
        return Source(names.renamed(theirs, names.from_llava_hf, file), source.files)
    if what.projector not in PROJECTORS:
        raise UnknownNameError("projector or file of one", what.projector, PROJECTORS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(what.seed)
        fresh = build_projector(what.projector, tower.config.hidden_size, width)
    state = fresh.to(dtype).state_dict()
    return Source({PROJECTOR + name: held(each) for name, each in state.items()}, ())


READERS: dict[str, Callable[[Import], Incoming]] = {
    "hf": _read_hf,
    "full": _read_full,
    "delta": _read_delta,
    "projector": _read_projector,
    "lora": _read_lora,
    "joined": _read_joined,
}
"""How each kind of folder is read."""
