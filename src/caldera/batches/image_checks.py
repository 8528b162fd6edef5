"""Checks of image files before a training: which cannot be decoded, and which lack their end."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from caldera.devices import Runtime
from caldera.errors import InputError
from caldera.images.decoding import DecodingConfig, is_truncated, open_image
from caldera.interruption import deferred_signals

_CHECKED_TOGETHER = 64
"""Images between two checks for a signal."""


def broken_images(
    paths: Sequence[Path], runtime: Runtime, decoding: DecodingConfig
) -> dict[Path, InputError]:
    """Decode all images, with a thread for each worker, and return the errors of those that cannot be used."""

    def error_of(path: Path) -> InputError | None:
        try:
            open_image(path, decoding)
        except InputError as error:
            return error
        return None

    errors: dict[Path, InputError] = {}
    with (
        deferred_signals() as request,
        runtime.progress.task("checking images", len(paths)) as advance,
        ThreadPoolExecutor(max(1, runtime.workers)) as threads,
    ):
        # A few at a time, as a signal ends the check between them.
        for start in range(0, len(paths), _CHECKED_TOGETHER):
            part = paths[start : start + _CHECKED_TOGETHER]
            for path, error in zip(part, threads.map(error_of, part), strict=True):
                if error:
                    errors[path] = error
            advance(len(part))
            request.raise_if_requested("stopped while checking images; repeat the command")
    return errors


def truncated_images(paths: Sequence[Path], runtime: Runtime) -> list[Path]:
    """Return the images that lack the end of their file, of those that can be decoded."""
    truncated: list[Path] = []
    with (
        deferred_signals() as request,
        runtime.progress.task("looking for truncated images", len(paths)) as advance,
    ):
        for path in paths:
            request.raise_if_requested("stopped while checking images; repeat the command")
            if is_truncated(path):
                truncated.append(path)
            advance()
    return truncated
