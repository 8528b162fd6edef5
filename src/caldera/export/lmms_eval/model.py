"""The model `caldera` of lmms-eval, which finds it by the entry point `lmms_eval.models`.

Only lmms-eval imports this module. Written for lmms-eval 0.7: its "simple" models get a text, and a function that opens
the images of a document.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import get_args

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from caldera.devices import DtypeName, choose_device
from caldera.errors import UnknownNameError, UsageError
from caldera.export.lmms_eval.answerer import LmmsAnswerer, LmmsQuestion, decoding_from
from caldera.formats.open_model import load_model
from caldera.progress import default_progress

_log = logging.getLogger(__name__)


def manifest() -> ModelManifest:
    """Return the model's name and class for lmms-eval."""
    return ModelManifest(model_id="caldera", simple_class_path=f"{__name__}.LmmsModel")


class LmmsModel(lmms):  # type: ignore[misc] # lmms-eval is optional
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
            dtype: "float32", "bfloat16", "float16" or "auto".
            batch_size: Questions per batch; lmms-eval's `--batch_size`.
            seed: Random seed, for tasks with a temperature.
            ignore_until: Whether to ignore a task's stops.
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
            load_model(pretrained),
            choose_device(device, dtype),
            batch_size=int(size),
            seed=seed,
            progress=default_progress(),
        )
        self._ignore_until = ignore_until

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer documents."""
        questions, unsupported = [], set()
        for request in requests:
            text, settings, open_visuals, document, task, split = request.args
            if self._ignore_until:
                settings = {name: value for name, value in settings.items() if name != "until"}
            generation, unsupported_settings = decoding_from(settings)
            unsupported.update(unsupported_settings)
            question = self._question(text, open_visuals, task, split, document)
            questions.append((question, generation))
        if unsupported:
            _log.warning(
                "generation settings that are not followed: %s", ", ".join(sorted(unsupported))
            )
        return self._answerer.answer(questions)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return for each answer (mean loss of its tokens, whether it is greedy); lmms-eval takes the smallest loss.

        lmms-eval 0.7.3 converts a bare pair to a string, which it cannot score; a `GenerationResult` is not converted.
        """
        questions = []
        for request in requests:
            if len(request.args) != 6:
                raise UsageError(
                    "an answer without its question (acc_mutual_info) is not scored; choose acc or acc_norm"
                )
            text, target, open_visuals, document, task, split = request.args
            answer = target(self.task_dict[task][split][document]) if callable(target) else target
            question = self._question(text, open_visuals, task, split, document)
            questions.append((question, str(answer)))
        scores = self._answerer.log_likelihoods(questions)
        return [GenerationResult((-score.per_token, score.greedy)) for score in scores]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raise UsageError: tasks of several rounds are not supported."""
        raise UsageError(
            "caldera does not support tasks of several rounds (generate_until_multi_round); choose another task"
        )

    def _question(
        self,
        text: str,
        open_visuals: Callable[[object], Sequence[object] | None],
        task: str,
        split: str,
        document: int,
    ) -> LmmsQuestion:
        """Return the question `text` about the images of a document."""
        return LmmsQuestion(
            f"task {task}, split {split}, document {document}",
            text,
            lambda: open_visuals(self.task_dict[task][split][document]),
        )
