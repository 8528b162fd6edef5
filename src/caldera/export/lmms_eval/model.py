"""A model folder in, lmms-eval's model `caldera` out; lmms-eval finds it by the entry point `lmms_eval.models`.

Only lmms-eval imports this module. Written for lmms-eval 0.7: its "simple" models get a text, and a function that opens
the images of a document.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from caldera.devices import DtypeName, choose_device
from caldera.errors import UnknownNameError, UsageError
from caldera.export.lmms_eval.answerer import (
    LmmsAnswerer,
    LmmsGeneration,
    LmmsQuestion,
    decoding_from,
)
from caldera.formats.model_folder import load_model_folder
from caldera.progress import default_progress

_log = logging.getLogger(__name__)


def manifest() -> ModelManifest:
    """Say what lmms-eval calls the model, and where it is."""
    return ModelManifest(model_id="caldera", simple_class_path=f"{__name__}.LmmsModel")


class LmmsModel(lmms):  # type: ignore[misc] # lmms-eval need not be there
    """`lmms_eval --model caldera --model_args pretrained=FOLDER`."""

    def __init__(
        self,
        pretrained: str,
        device: str = "auto",
        dtype: DtypeName = "auto",
        batch_size: int | str = 1,
        seed: int = 0,
        ignore_until: bool = False,
    ) -> None:
        """Load a model folder.

        Args:
            pretrained: The folder.
            device: A torch device, or "auto".
            dtype: "float32", "bfloat16" or "auto".
            batch_size: Questions that are answered together; lmms-eval's `--batch_size`.
            seed: Of draws, where a task has a temperature.
            ignore_until: Whether answers are kept whole where a task has stops.

        Raises:
            ModelFolderError: It cannot be loaded.
            UsageError: A setting cannot be, or this is one of several processes.
        """
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                "caldera answers lmms-eval in one process; start it without accelerate launch or torchrun"
            )
        if dtype not in get_args(DtypeName):
            raise UnknownNameError("dtype", dtype, get_args(DtypeName))
        if not (size := str(batch_size)).isdecimal() or int(size) < 1:
            raise UsageError(f"batch_size is {size!r}; give a number such as --batch_size 8")
        self._answerer = LmmsAnswerer(
            load_model_folder(Path(pretrained)),
            choose_device(device, dtype),
            batch_size=int(size),
            seed=seed,
            progress=default_progress(),
        )
        self._ignore_until = ignore_until

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer documents.

        Raises:
            CalderaError: One cannot be asked; a note says which.
        """
        asked, surplus = [], set()
        for text, settings, open_visuals, document, task, split in (one.args for one in requests):
            decoding, left = self._decoding(settings)
            surplus.update(left)
            asked.append((self._question(text, open_visuals, (task, split, document)), decoding))
        if surplus:
            _log.warning(
                "generation settings that are not followed: %s", ", ".join(sorted(surplus))
            )
        return self._answerer.answer(asked)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return for each answer (mean loss of its tokens, whether it is greedy); lmms-eval takes the least loss.

        lmms-eval 0.7.3 turns a bare pair into a string, which it then cannot score; in a `GenerationResult` it lasts.

        Raises:
            CalderaError: One cannot be asked; a note says which.
        """
        asked = []
        for one in requests:
            if len(one.args) != 6:
                raise UsageError(
                    "an answer without its question (acc_mutual_info) is not weighed; choose acc or acc_norm"
                )
            text, target, open_visuals, document, task, split = one.args
            answer = target(self.task_dict[task][split][document]) if callable(target) else target
            asked.append((self._question(text, open_visuals, (task, split, document)), str(answer)))
        weights = self._answerer.log_likelihoods(asked)
        return [GenerationResult((-weight.per_token, weight.greedy)) for weight in weights]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse tasks of several rounds.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "tasks of several rounds (generate_until_multi_round) cannot be asked of caldera; choose another task"
        )

    def _decoding(self, settings: Mapping[str, Any]) -> tuple[LmmsGeneration, list[str]]:
        """Read how a task wants answers written."""
        kept = {name: value for name, value in settings.items() if name != "until"}
        return decoding_from(kept if self._ignore_until else settings)

    def _question(self, text: str, open_visuals: Any, place: tuple[str, str, int]) -> LmmsQuestion:  # noqa: ANN401 - untyped there
        """Ask `text` about the images of a document."""
        task, split, document = place
        return LmmsQuestion(
            f"task {task}, split {split}, document {document}",
            text,
            lambda: open_visuals(self.task_dict[task][split][document]),
        )
