"""A model folder in, its weights out one at a time: nothing is read before it is asked for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from caldera.errors import ModelFolderError
from caldera.model.weights import VISION, check_fit, weight_files

_INNER = "vision_model."
"""Stands in vision weights' names in some folders and not in others."""


class LazyWeights:
    """The weights of a folder, mapped and not read; vision weights are called by their names without `vision_model`."""

    def __init__(self, folder: Path) -> None:
        """Open the weight files of `folder`.

        Raises:
            ModelFolderError: A file is missing or cut.
        """
        self._folder = folder
        self._place: dict[str, tuple[Any, str]] = {}
        for file in weight_files(folder):
            try:
                opened = safe_open(file, "pt")
            except FileNotFoundError:
                raise ModelFolderError(f"{file} is missing; copy the model folder again") from None
            except (SafetensorError, OSError) as error:
                raise ModelFolderError(
                    f"{file} is broken or cut ({error}); copy it again"
                ) from None
            for name in opened.keys():  # type: ignore[no-untyped-call] # noqa: SIM118 - it is no mapping
                plain = VISION + name.removeprefix(VISION).removeprefix(_INNER)
                self._place[plain if name.startswith(VISION) else name] = (opened, name)

    def names(self, prefix: str) -> list[str]:
        """List the names that start with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._place if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a weight's shape."""
        opened, there = self._place[name]
        return tuple(opened.get_slice(there).get_shape())

    def read(self, name: str) -> Tensor:
        """Read a weight, in fp32."""
        opened, there = self._place[name]
        return opened.get_tensor(there).float()

    def check_fit(self, shell: nn.Module, prefix: str, optional: Iterable[str] = ()) -> None:
        """Compare names and shapes of one part with what `shell` takes; `optional` ones may be missing.

        Raises:
            ModelFolderError: A weight is missing, not expected, or has another shape.
        """
        given = {
            name: torch.empty(self.shape(prefix + name), device="meta")
            for name in self.names(prefix)
        }
        check_fit(shell, given, prefix.rstrip("."), self._folder, frozenset(optional))
