"""Overrides of single settings by dotted name: `finetune.batch_size=8`."""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from caldera.errors import UnknownNameError, UsageError

_Config = TypeVar("_Config")

RENAMED = {
    # training stage
    "trains": "trainable",
    "keep_features": "cache_features",
    "fit_projector": "calibrate_projector",
    "share_pictures": "share_prefixes",
    "recompute": "gradient_checkpointing",
    "warmup_fraction": "warmup_ratio",
    "validation_rows": "validation_size",
    "grids": "grid_pinpoints",
    "validate_every": "eval_every",
    "checkpoint_every": "save_every",
    # recipe
    "select_layer": "vision_feature_layer",
    "per_picture": "per_image",
    "context_per_picture": "context_per_image",
    "pictures": "images",
    # image processor
    "edge": "resize_shortest_edge",
    "squash": "resize_without_crop",
    # engine
    "queue": "max_waiting",
    "chunk": "prefill_chunk_size",
    "cache_bytes": "prefix_cache_bytes",
    "bits": "quantization",
    "fast": "allow_fast_decoder",
    # server limits
    "body_seconds": "body_timeout",
    "stall_seconds": "send_timeout",
    "ping_seconds": "keep_alive_interval",
    "answer_seconds": "answer_timeout",
    "drain_seconds": "drain_timeout",
    "key_requests": "max_concurrent_per_key",
    "key_requests_per_minute": "max_per_minute_per_key",
    "download_seconds": "download_timeout",
    "decode_seconds": "decode_timeout",
    "host_names": "allowed_hosts",
    "hosts": "allowed_domains",
    # evaluation answers
    "choose_by": "choice_method",
    "give_up_after": "max_consecutive_failures",
    # requests to an LLM server
    "first_wait": "initial_backoff",
    "longest_wait": "max_backoff",
    "limit_name": "max_tokens_field",
    "repairs": "max_repairs",
}
"""Former names of settings. A command answers them with the new name; files of earlier versions are read by it."""

SYNONYMS = {
    "lr": "learning_rate",
    "mm_projector_lr": "projector_learning_rate",
    "projector_lr": "projector_learning_rate",
    "mm_vision_tower_lr": "vision_learning_rate",
    "vision_lr": "vision_learning_rate",
    "bs": "batch_size",
    "batch": "batch_size",
    "global_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "micro_bs": "micro_batch_size",
    "epoch": "epochs",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "warmup": "warmup_ratio",
    "wd": "weight_decay",
    "grad_clip": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "model_max_length": "max_length",
    "cutoff_len": "max_length",
    "seq_len": "max_length",
    "val_size": "validation_size",
    "eval_steps": "eval_every",
    "save_steps": "save_every",
    "activation_checkpointing": "gradient_checkpointing",
    "image_aspect_ratio": "aspect",
    "image_grid_pinpoints": "grid_pinpoints",
    "mm_vision_select_layer": "vision_feature_layer",
    "mm_projector_type": "projector",
    "version": "template",
    "conv_mode": "template",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_enable": "lora",
    "r": "rank",
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "max_retries": "retries",
}
"""Names of settings in LLaVA's code, transformers and LLaMA-Factory; an error suggests the current one."""

_FORMER = {new: old for old, new in RENAMED.items()}

_LATER = frozenset({"save_every_minutes", "loss_batch_size", "anyres_max"})
"""Settings that version 0.1 did not have; without them a run is what it was."""


def apply_overrides(config: _Config, assignments: Iterable[str]) -> _Config:
    """Return a copy of a frozen dataclass with every `name=value` applied; its `__post_init__` checks the values."""
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment} has no '='; write --set NAME=VALUE")
        config = _apply_one(config, name.strip(), text.strip(), name.strip())
    return config


def with_current_names(settings: object) -> Any:  # noqa: ANN401 - JSON
    """Return settings read from a JSON file with former names replaced by current ones, at any depth."""
    return _with_names(settings, RENAMED)


def with_former_names(settings: object) -> Any:  # noqa: ANN401 - JSON
    """Return JSON settings as version 0.1 wrote them, so that fingerprints of earlier versions stay valid."""
    return _with_names(settings, _FORMER, _LATER)


def _with_names(
    settings: object, names: Mapping[str, str], omitted: frozenset[str] = frozenset()
) -> object:
    """Return settings with some names replaced and some omitted, at any depth."""
    if isinstance(settings, Mapping):
        return {
            names.get(key, key): _with_names(value, names, omitted)
            for key, value in settings.items()
            if key not in omitted
        }
    if isinstance(settings, list | tuple):
        return [_with_names(value, names, omitted) for value in settings]
    return settings


def _apply_one(config: Any, dotted: str, text: str, full_name: str) -> Any:  # noqa: ANN401 - any frozen dataclass
    """Return `config` with the field at the path `dotted` set to the value written in `text`."""
    name, _, rest = dotted.partition(".")
    valid = {field.name: field for field in fields(config)}
    if name not in valid:
        subject = f"setting of {type(config).__name__}"
        known_as = RENAMED.get(name) or SYNONYMS.get(name.lower().replace("-", "_"), name)
        if matches := _paths_to(known_as, valid):
            suggestion = " or ".join(map(repr, matches))
            raise UsageError(f"no {subject} is called {name!r}; did you mean {suggestion}?")
        raise UnknownNameError(subject, name, valid)
    old, annotation = getattr(config, name), valid[name].type
    if group := _group(annotation):
        new = _apply_to_group(group, old, (rest, text, full_name), annotation)
        return replace(config, **{name: new})
    if rest:
        raise UsageError(f"{full_name} does not exist; {name} is a single setting")
    return replace(config, **{name: _parse_value(text, old, annotation, full_name)})


def _paths_to(name: str, valid: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the settings called `name`, among some fields and those of their groups."""
    first = name.partition(".")[0]
    if first in valid:
        return [name]
    groups = {field.name: _group(field.type) for field in valid.values()}
    return [
        f"{group}.{name}"
        for group, kind in groups.items()
        if kind and first in {field.name for field in fields(kind)}
    ]


def _group(annotation: object) -> type | None:
    """Return the dataclass of a field that holds one (or None); None for a field with a single value."""
    types = (annotation, *get_args(annotation))
    return next((item for item in types if isinstance(item, type) and is_dataclass(item)), None)


def _apply_to_group(
    group: type, old: object, assignment: tuple[str, str, str], annotation: object
) -> object:
    """Return a group of settings with one of them changed, or an optional group switched on or off.

    `lora.rank=8` switches the group on with that rank, `lora=on` switches it on with its defaults, `lora=none` off.
    """
    rest, text, full_name = assignment
    if rest:
        return _apply_one(group() if old is None else old, rest, text, full_name)
    optional = NoneType in get_args(annotation)
    if optional and text.lower() in ("on", "none"):
        return None if text.lower() == "none" else old or group()
    switch = f", or {full_name}=on, {full_name}=none" if optional else ""
    raise UsageError(
        f"{full_name} is a group of settings; name one of them, as {full_name}.NAME{switch}"
    )


def _type_name(annotation: object) -> str:
    """Return a field's type as written in source: 'int', 'float | None'."""
    if annotation is NoneType:
        return "None"
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_type_name, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return " | ".join(map(repr, get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _parse_value(text: str, old: object, annotation: object, full_name: str) -> object:
    """Parse a value of the field's type, or raise UsageError."""
    type_name = _type_name(annotation)
    if NoneType in get_args(annotation) and text.lower() == "none":
        return None
    if isinstance(old, Path):
        return Path(text)
    if isinstance(old, str) or (old is None and ("str" in type_name or "'" in type_name)):
        return text
    try:
        new = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        new = text
    if isinstance(old, tuple) and isinstance(new, str):
        new = tuple(part.strip() for part in new.split(","))
    if "float" in type_name:
        new = tuple(map(_widen_int, new)) if isinstance(new, tuple) else _widen_int(new)
    if not _has_type(new, old, type_name):
        raise UsageError(
            f"{full_name}={text} does not fit: expected {type_name}, currently {old!r}"
        )
    return new


def _widen_int(value: object) -> object:
    return float(value) if type(value) is int else value


def _has_type(new: object, old: object, type_name: str) -> bool:
    """Return whether a value has the type of the value it replaces."""
    if old is None:
        return type(new).__name__ in type_name
    if isinstance(old, tuple) and isinstance(new, tuple):
        right_length = "..." in type_name or len(new) == len(old)
        # The tuples that may be empty hold names.
        item_types = {*map(type, old)} or {str}
        return right_length and {*map(type, new)} <= item_types
    return type(new) is type(old)
