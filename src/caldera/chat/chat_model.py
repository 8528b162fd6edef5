"""Chat model in memory, loaded by `caldera.load()`: the Python API."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from caldera.chat.session import Session
from caldera.devices import DeviceConfig, DtypeName, choose_device
from caldera.formats.model_paths import find_model
from caldera.formats.open_model import load_model
from caldera.formats.weight_names import read_weights, stored_dtype
from caldera.images.decoding import resolve_image_path
from caldera.inference.engine import AnswerStream, Engine, EngineConfig
from caldera.inference.sampling import SamplingParams


def load_engine(
    folder: Path, compute: DeviceConfig, settings: EngineConfig | None = None
) -> Engine:
    """Load a model folder and start an engine with it.

    Raises:
        ModelFormatError: The folder cannot be loaded.
        UsageError: The model or the device does not support the quantization.
    """
    assistant = load_model(folder, compute.dtype)
    assistant.model.to(compute.device)
    return Engine(assistant, settings)


def load_session(
    folder: Path,
    sampling: SamplingParams,
    compute: DeviceConfig,
    settings: EngineConfig | None = None,
) -> Session:
    """Load a model folder and start a session with it; raises what `load_engine` raises."""
    return Session(load_engine(folder, compute, settings), sampling)


def with_stored_dtype(folder: Path, compute: DeviceConfig) -> DeviceConfig:
    """Return `compute` with fp32 if the model folder is stored in fp32.

    Args:
        folder: A model folder.
        compute: A device and the precision that is fastest on it.

    Raises:
        ModelFormatError: It is not a model folder, or its weights cannot be listed.
    """
    is_fp32 = stored_dtype(read_weights(find_model(folder))) == torch.float32
    return replace(compute, dtype=torch.float32) if is_fp32 else compute


ImageInput = str | Path | Image.Image
"""An image: the path of its file, or decoded by Pillow."""


class ChatModel(AbstractContextManager["ChatModel"]):
    """A model in memory; its methods are thread-safe."""

    def __init__(self, engine: Engine) -> None:
        """Answer with `engine`."""
        self.engine = engine

    def chat(self, question: str, *images: ImageInput, **settings: Any) -> str:  # noqa: ANN401 - checked by SamplingParams
        """Return the answer to a question.

        Args:
            question: The question.
            images: Images before the question; any number, including none.
            settings: Fields of `SamplingParams`, such as max_new_tokens=64 or temperature=0.7.

        Raises:
            ImageError: An image cannot be used.
            UsageError: A setting is out of range, or the question is too long.
            EngineError: The model failed.
        """
        return "".join(self.stream(question, *images, **settings))

    def stream(self, question: str, *images: ImageInput, **settings: Any) -> Iterator[str]:  # noqa: ANN401
        """Yield the answer as it is generated; closing the iterator stops it. Otherwise like `chat`."""
        return self.start_conversation(*images, **settings).ask(question)

    def chat_batch(
        self,
        questions: Sequence[tuple[ImageInput, ...]],
        **settings: Any,  # noqa: ANN401
    ) -> list[str]:
        """Answer many questions, several at a time; return the answers in order.

        Args:
            questions: Each with the images before it: [("What is it?", "a.jpg"), ("And here?", "b.jpg")].
            settings: Fields of `SamplingParams`; the seed is increased by 1 for each question.

        Raises:
            ImageError: An image cannot be used.
            UsageError: A setting is out of range, or a question is too long.
            EngineError: The model failed.
        """
        sampling = SamplingParams(**settings)
        running: list[AnswerStream] = []
        answers: list[str] = []
        for index, (question, *images) in enumerate(questions):
            session = self._session(images, replace(sampling, seed=sampling.seed + index))
            if len(running) == self.engine.settings.slots:
                answers.append(running.pop(0).read_all())
            running.append(self.engine.submit(session.build_request(str(question))))
        return answers + [stream.read_all() for stream in running]

    def start_conversation(self, *images: ImageInput, **settings: Any) -> Session:  # noqa: ANN401
        """Return a conversation: `ask` yields an answer, `add_image` adds an image to the next question.

        Raises:
            ImageError: An image cannot be used.
            UsageError: A setting is out of range.
        """
        return self._session(images, SamplingParams(**settings))

    def _session(self, images: Sequence[ImageInput], sampling: SamplingParams) -> Session:
        session = Session(self.engine, sampling)
        for image in images:
            if isinstance(image, str | Path):
                image = resolve_image_path(str(image))
            session.add_image(image)
        return session

    def close(self) -> None:
        """Stop the engine; running answers fail."""
        self.engine.close()

    def __exit__(self, *exception: object) -> None:
        """Close the model."""
        self.close()


def load(
    folder: str | Path,
    *,
    device: str = "auto",
    dtype: DtypeName = "auto",
    settings: EngineConfig | None = None,
) -> ChatModel:
    """Load a model folder of caldera or of llava-hf.

    Args:
        folder: The model folder.
        device: A torch device, or "auto".
        dtype: Precision; "auto" is float32 if the model is stored so, else bfloat16 where the processor is fast at it.
        settings: Configuration of the engine, such as EngineConfig(quantization="int8").

    Raises:
        ModelFormatError: The folder cannot be loaded.
        UsageError: There is no such device, or it does not support the quantization.
    """
    compute = choose_device(device, dtype)
    compute = with_stored_dtype(Path(folder), compute) if dtype == "auto" else compute
    return ChatModel(load_engine(Path(folder), compute, settings))
