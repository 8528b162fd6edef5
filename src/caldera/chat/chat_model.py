"""Caldera.load(): the Python API."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from PIL import Image

from caldera.chat.session import Session
from caldera.devices import DeviceConfig, DtypeName, choose_device
from caldera.formats.metadata import read_card
from caldera.formats.model_folder import load_model_folder
from caldera.formats.weight_names import read_weights, stored_dtype
from caldera.images.decoding import resolve_image_path
from caldera.inference.engine import AnswerStream, Engine, EngineConfig
from caldera.inference.sampling import SamplingParams


def load_engine(
    folder: Path, compute: DeviceConfig, settings: EngineConfig | None = None
) -> Engine:
    """Load a model folder and start an engine on it.

    Raises:
        ModelFolderError: The folder cannot be loaded.
        UsageError: int8 is asked for, but this model or device cannot.
    """
    assistant = load_model_folder(folder, compute.dtype)
    assistant.model.to(compute.device)
    return Engine(assistant, settings)


def load_session(
    folder: Path,
    sampling: SamplingParams,
    compute: DeviceConfig,
    settings: EngineConfig | None = None,
) -> Session:
    """Load a model folder and open a session with it.

    Raises:
        ModelFolderError: The folder cannot be loaded.
        UsageError: int8 is asked for, but this model or device cannot.
    """
    return Session(load_engine(folder, compute, settings), sampling)


def with_stored_dtype(folder: Path, compute: DeviceConfig) -> DeviceConfig:
    """Return fp32 for a folder that is stored so, and the fast precision for one that is stored in fp16 or bf16.

    Args:
        folder: A model folder.
        compute: A device and the precision that is fastest on it.

    Raises:
        ModelFolderError: It is no model folder, or its weights cannot be listed.
    """
    if not folder.is_dir():
        return compute  # loading says what is wrong
    read_card(folder)  # so does this of what is no model folder, before its weights are missed
    stored_so = stored_dtype(read_weights(folder)) == torch.float32
    return replace(compute, dtype=torch.float32) if stored_so else compute


ImageInput = str | Path | Image.Image
"""An image: its file, or decoded by Pillow."""


class ChatModel:
    """An assistant in memory; its methods may be called from several threads."""

    def __init__(self, engine: Engine) -> None:
        """Answer through `engine`."""
        self.engine = engine

    def chat(self, question: str, *images: ImageInput, **settings: Any) -> str:  # noqa: ANN401 - Sampling checks them
        """Return the answer to a question about images, or about none.

        Args:
            question: What is asked.
            images: Shown before it.
            settings: Fields of `Sampling`, such as max_new_tokens=64 or temperature=0.7.

        Raises:
            ImageError: An image cannot be used.
            UsageError: A setting is out of its range, or the question too long.
            EngineError: The model could not go on.
        """
        return "".join(self.stream(question, *images, **settings))

    def stream(self, question: str, *images: ImageInput, **settings: Any) -> Iterator[str]:  # noqa: ANN401
        """Yield the same answer piece by piece; leaving the loop stops it.

        Raises:
            ImageError: An image cannot be used.
            UsageError: A setting is out of its range, or the question too long.
            EngineError: The model could not go on.
        """
        return self.start_conversation(*images, **settings).ask(question)

    def chat_batch(
        self,
        asked: Sequence[tuple[ImageInput, ...]],
        **settings: Any,  # noqa: ANN401
    ) -> list[str]:
        """Answer many questions, several at a time, in their order.

        Args:
            asked: Each a question and the images before it: [("What is it?", "a.jpg"), ("And here?", "b.jpg")].
            settings: Fields of `Sampling`; each question draws from a seed of its own.

        Raises:
            ImageError: An image cannot be used.
            UsageError: A setting is out of its range, or a question too long.
            EngineError: The model could not go on.
        """
        sampling = SamplingParams(**settings)
        waiting: list[AnswerStream] = []
        answers: list[str] = []
        for number, (question, *images) in enumerate(asked):
            session = self._session(images, replace(sampling, seed=sampling.seed + number))
            if len(waiting) == self.engine.settings.slots:
                answers.append(waiting.pop(0).read_all())
            waiting.append(self.engine.submit(session.build_request(str(question))))
        return answers + [answering.read_all() for answering in waiting]

    def start_conversation(self, *images: ImageInput, **settings: Any) -> Session:  # noqa: ANN401
        """Begin a conversation: `say` yields an answer and keeps it, `show` puts an image before the next question.

        Raises:
            ImageError: An image cannot be used.
            UsageError: A setting is out of its range.
        """
        return self._session(images, SamplingParams(**settings))

    def _session(self, images: Sequence[ImageInput], sampling: SamplingParams) -> Session:
        session = Session(self.engine, sampling)
        for image in images:
            session.add_image(
                image if isinstance(image, Image.Image) else resolve_image_path(str(image))
            )
        return session

    def close(self) -> None:
        """Free the engine's thread; answers that are not finished fail."""
        self.engine.close()

    def __enter__(self) -> Self:
        """Use it for a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


def load(
    folder: str | Path,
    *,
    device: str = "auto",
    dtype: DtypeName = "auto",
    settings: EngineConfig | None = None,
) -> ChatModel:
    """Load a model folder, of caldera or of llava-hf.

    Args:
        folder: The model folder.
        device: A torch device, or "auto".
        dtype: A precision; "auto" is float32 if it is stored so, else bfloat16 where the processor is fast at it.
        settings: Of the engine, such as EngineSettings(bits="int8").

    Raises:
        ModelFolderError: The folder cannot be loaded.
        UsageError: There is no such device, or int8 is asked for where it cannot be.
    """
    compute = choose_device(device, dtype)
    compute = with_stored_dtype(Path(folder), compute) if dtype == "auto" else compute
    return ChatModel(load_engine(Path(folder), compute, settings))
