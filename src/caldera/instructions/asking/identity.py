"""What makes two runs the same: prompts, model, parameters, annotations and code; others are not mixed in."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from caldera import __version__
from caldera.annotations.annotated_image import AnnotatedImage
from caldera.errors import InputError, UsageError
from caldera.instructions.asking.endpoint import RequestConfig
from caldera.instructions.asking.prompts import TeacherPrompt
from caldera.instructions.teacher import Kind
from caldera.storage import write_json

Fingerprint = dict[str, str]


def fingerprint_of(
    model: str,
    prompts: Mapping[Kind, TeacherPrompt],
    sending: RequestConfig,
    images: Iterable[AnnotatedImage],
) -> Fingerprint:
    """Gather what a reply depends on; where it is fetched from, and how fast, does not count."""
    return {
        "model": model,
        "temperature": str(sending.temperature),
        "top_p": str(sending.top_p),
        "seed": str(sending.seed),
        "max_tokens": str(sending.max_tokens),
        "max_repairs": str(sending.max_repairs),
        "annotations": _digest_of(images),
        "caldera": __version__,
        **{f"prompt of {kind}": prompt.digest for kind, prompt in prompts.items()},
    }


def digest_of(identity: Fingerprint) -> str:
    """Return twelve characters that stand for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def check_or_write(path: Path, identity: Fingerprint, *, allow_mixed: bool) -> None:
    """Write down who this run is, or compare with who it was.

    A kind that was not asked for before is added. What differs is refused, unless mixing is allowed; then both stand in
    the file, and every reply names its own by digest.

    Raises:
        UsageError: Something differs.
        InputError: The file is broken.
    """
    try:
        before: list[Fingerprint] = json.loads(path.read_text()) if path.exists() else []
        known = [dict[str, str](each) for each in before]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is broken ({error}); choose another --out") from error
    if identity in known:
        return
    latest = known[-1] if known else {}
    changed = [key for key in identity if key in latest and latest[key] != identity[key]]
    if changed and not allow_mixed:
        told = "; ".join(f"{key} was {latest[key]}, is {identity[key]}" for key in changed)
        raise UsageError(
            f"{path.parent} holds replies made otherwise ({told}); choose another --out, or mix them with --allow-mixed"
        )
    write_json(path, [*known, identity])


def _digest_of(images: Iterable[AnnotatedImage]) -> str:
    """Return twelve characters that stand for all annotations."""
    total = hashlib.sha256()
    for image in images:
        told = (image.id, image.path.name, image.captions, image.instances)
        total.update(repr(told).encode("utf-8", "surrogatepass"))
    return total.hexdigest()[:12]
