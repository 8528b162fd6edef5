"""Chat model in memory, loaded by `caldera.load()`: the Python API."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from caldera.chat.image_inputs import FetchImage, ImageInput, decode_input, to_image_list
from caldera.chat.messages import read_messages
from caldera.chat.session import Session, user_turn
from caldera.conversation import Conversation, ImageRef
from caldera.devices import FLOAT16_MAX, DeviceConfig, DtypeName, choose_device, is_cpu
from caldera.errors import QueueFullError, UnknownNameError, UsageError, shorten_value
from caldera.formats.model_paths import find_model
from caldera.formats.open_model import load_model
from caldera.formats.weight_files import read_folder
from caldera.formats.weight_names import stored_dtype
from caldera.inference import features
from caldera.inference.engine import AnswerStream, Engine, EngineConfig, Request
from caldera.inference.prompts import ProcessedImage, Prompt, check_context_length
from caldera.inference.sampling import SamplingParams, sampling_from


def load_engine(
    folder: Path, compute: DeviceConfig, settings: EngineConfig | None = None
) -> Engine:
    """Load a model folder and start an engine with it.

    Raises:
        ModelFormatError: The folder cannot be loaded.
        UsageError: The model or the device does not support the quantization, or the weights exceed the precision.
    """
    assistant = load_model(folder, compute.dtype)
    model = assistant.model.to(compute.device)
    if compute.dtype == torch.float16 and not all(
        bool(weight.isfinite().all()) for weight in model.parameters()
    ):
        raise UsageError(
            f"{folder} has weights beyond {FLOAT16_MAX}, where float16 ends; use --dtype bfloat16 or float32"
        )
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
    """Return `compute` with the precision that a model folder is stored in, where no product is slow in it.

    That is fp32, and on GPUs fp16: bf16 would round the weights.

    Args:
        folder: A model folder, or that of a run.
        compute: A device and the precision that is fastest on it.

    Raises:
        ModelFormatError: It is not a model folder, or its weights cannot be listed.
    """
    stored = stored_dtype(read_folder(find_model(folder)).weights)
    runnable = (torch.float32,) if is_cpu(compute.device) else (torch.float32, torch.float16)
    return replace(compute, dtype=stored) if stored in runnable else compute


_QUEUE_SECONDS = 0.02
"""Seconds between two attempts to join a full queue."""

Question = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Conversation
"""A question: a text, messages as of OpenAI's API or of transformers, or a conversation that ends with the user."""


class ChatModel(AbstractContextManager["ChatModel"]):
    """A model in memory; its methods are thread-safe.

    An image is a path, a data: URL, the bytes of a file, an open file, a Pillow image, an array of (height, width,
    channels), or a tensor of (channels, height, width); pixels are 0 to 255, or 0 to 1 if they are floats. Where images
    are taken, so are lists of them. Settings are the fields of `SamplingParams`, such as max_new_tokens=64.
    """

    def __init__(self, engine: Engine, fetch_image: FetchImage | None = None) -> None:
        """Answer with `engine`; `fetch_image` returns the content of an image's URL, and without it URLs are errors."""
        self.engine = engine
        self._fetch_image = fetch_image

    def chat(
        self,
        question: Question,
        *images: ImageInput | Sequence[ImageInput],
        **settings: Any,  # noqa: ANN401 - checked by SamplingParams
    ) -> str:
        """Return the answer to a question.

        Args:
            question: A text, or messages: [{"role": "user", "content": "What is it?"}].
            images: Images before the question, or of the parts {"type": "image"} of messages; any number.
            settings: Fields of `SamplingParams`, such as max_new_tokens=64 or temperature=0.7.

        Raises:
            ImageError: An image cannot be used.
            UsageError: There is no such setting, a value is invalid, or the question is too long.
            EngineError: The model failed.
        """
        return "".join(self.stream(question, *images, **settings))

    def stream(
        self,
        question: Question,
        *images: ImageInput | Sequence[ImageInput],
        **settings: Any,  # noqa: ANN401
    ) -> Iterator[str]:
        """Return an iterator over the answer as it is generated; closing it stops the answer. Otherwise like `chat`."""
        request = self._request(question, images, settings)

        def texts() -> Iterator[str]:
            stream = self.engine.submit(request)
            try:
                yield from (delta.text for delta in stream if delta.text)
            finally:
                stream.cancel()

        return texts()

    async def achat(
        self,
        question: Question,
        *images: ImageInput | Sequence[ImageInput],
        **settings: Any,  # noqa: ANN401
    ) -> str:
        """Return the answer like `chat`, without blocking the event loop; several can be awaited together."""
        return "".join([text async for text in self.astream(question, *images, **settings)])

    async def astream(
        self,
        question: Question,
        *images: ImageInput | Sequence[ImageInput],
        **settings: Any,  # noqa: ANN401
    ) -> AsyncIterator[str]:
        """Yield the answer like `stream`, without blocking the event loop."""
        request = await asyncio.to_thread(self._request, question, images, settings)
        stream = await self._submit_later(request)
        try:
            async for delta in stream:
                if delta.text:
                    yield delta.text
        finally:
            stream.cancel()

    def chat_batch(
        self,
        questions: Sequence[Question | tuple[Any, ...]],
        images: Sequence[Any] | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> list[str]:
        """Answer many questions, several at a time; return the answers in order.

        Args:
            questions: Each alone, or with its images: [("What is it?", "a.jpg"), ("And here?", "b.jpg")].
            images: One item for each question, an image or a list of images, instead of images among the questions.
            settings: Fields of `SamplingParams`; the seed is increased by 1 for each question.

        Raises:
            ImageError: An image cannot be used.
            UsageError: A setting or a question is invalid, or there are not as many images as questions.
            EngineError: The model failed.
        """
        if not isinstance(questions, list | tuple):
            raise UsageError(
                f"chat_batch takes a list of questions, got {shorten_value(questions)}; for one use chat"
            )
        if images is None:
            images = [()] * len(questions)
        if len(images) != len(questions):
            raise UsageError(
                f"there are {len(questions)} questions and {len(images)} images; give one image, or a list of images, "
                "for each question"
            )
        sampling = sampling_from(settings)
        running: list[AnswerStream] = []
        answers: list[str] = []
        for index, (item, separate) in enumerate(zip(questions, images, strict=True)):
            question, *own = item if isinstance(item, tuple) else (item,)
            prompt = self._prompt(question, to_image_list([own, separate]))
            if len(running) == self.engine.settings.slots:
                answers.append(running.pop(0).read_all())
            request = Request(prompt, replace(sampling, seed=sampling.seed + index))
            running.append(self.engine.submit(request))
        return answers + [stream.read_all() for stream in running]

    def start_conversation(
        self,
        *images: ImageInput | Sequence[ImageInput],
        **settings: Any,  # noqa: ANN401
    ) -> Session:
        """Return a conversation: `ask` yields an answer, `add_image` adds an image to the next question.

        Raises:
            ImageError: An image cannot be used.
            UsageError: There is no such setting, or a value is invalid.
        """
        session = Session(self.engine, sampling_from(settings), self._fetch_image)
        for image in to_image_list(images):
            session.add_image(image)
        return session

    def image_features(self, image: ImageInput) -> Tensor:
        """Return the vision tower's features of an image, (views, patches, vision width), before the projector."""
        [prepared] = self._prepare([image])
        return self.engine.run_between_steps(
            lambda assistant: features.image_features(assistant, prepared)
        )

    def image_embeddings(self, image: ImageInput) -> Tensor:
        """Return an image as the language model reads it, (image tokens, width): the projected features."""
        [prepared] = self._prepare([image])
        return self.engine.run_between_steps(
            lambda assistant: features.image_embeddings(assistant, prepared)
        )

    def hidden_states(
        self, question: Question, *images: ImageInput | Sequence[ImageInput]
    ) -> Tensor:
        """Return the language model's last hidden state of each token of the prompt, (tokens, width)."""
        prompt = self._checked_prompt(question, images)
        return self.engine.run_between_steps(
            lambda assistant: features.hidden_states(assistant, prompt)
        )

    def embed(self, question: Question, *images: ImageInput | Sequence[ImageInput]) -> Tensor:
        """Return one vector for a question and its images, (width,): the hidden state from which the answer starts."""
        return self.hidden_states(question, *images)[-1]

    def logits(self, question: Question, *images: ImageInput | Sequence[ImageInput]) -> Tensor:
        """Return the logits after each token of the prompt, (tokens, vocabulary); the last are the answer's first."""
        prompt = self._checked_prompt(question, images)
        return self.engine.run_between_steps(
            lambda assistant: features.prompt_logits(assistant, prompt)
        )

    def close(self) -> None:
        """Stop the engine; running answers fail."""
        self.engine.close()

    def __exit__(self, *exception: object) -> None:
        """Close the model."""
        self.close()

    def _request(
        self, question: object, images: Sequence[object], settings: Mapping[str, Any]
    ) -> Request:
        """Return the request for a question; images may also be among the settings, by name."""
        keyword_images = [
            settings[name] for name in ("image", "images") if settings.get(name) is not None
        ]
        sampling = sampling_from(
            {name: value for name, value in settings.items() if name not in ("image", "images")}
        )
        return Request(self._prompt(question, to_image_list([*images, *keyword_images])), sampling)

    async def _submit_later(self, request: Request) -> AnswerStream:
        """Request an answer as soon as the engine's queue has room, so that any number can be awaited together."""
        while True:
            try:
                return self.engine.submit(request)
            except QueueFullError:
                await asyncio.sleep(_QUEUE_SECONDS)

    def _checked_prompt(self, question: object, images: Sequence[object]) -> Prompt:
        """Return a prompt that fits into the model's context."""
        prompt = self._prompt(question, to_image_list(images))
        check_context_length(
            prompt.ids, SamplingParams(max_new_tokens=1), self.engine.context_length
        )
        return prompt

    def _prompt(self, question: object, images: list[Any]) -> Prompt:
        """Return the prompt of a question and its images."""
        labeled = self.engine.labels_images
        match question:
            case str():
                if not question.strip():
                    raise UsageError("the question is empty; enter a question")
                references = [ImageRef(str(index)) for index in range(len(images))]
                conversation = Conversation(
                    "chat", (user_turn(question, references, labeled=labeled),)
                )
            case Conversation():
                conversation, images = question, images or list(question.images)
            case dict():
                conversation, images = read_messages([question], images, labeled=labeled)
            case list() | tuple() if question and not any(
                isinstance(item, str) for item in question
            ):
                conversation, images = read_messages(question, images, labeled=labeled)
            case list() | tuple():
                raise UsageError(
                    f"a question cannot be the list {shorten_value(question)}; give a text or messages, and several "
                    "questions to chat_batch"
                )
            case _:
                raise UsageError(
                    f"a question cannot be {shorten_value(question)} of type {type(question).__name__}; give a text or "
                    "messages, then images"
                )
        return self.engine.build_prompt(conversation, self._prepare(images))

    def _prepare(self, images: Sequence[object]) -> list[ProcessedImage]:
        decoded = (decode_input(image, self._fetch_image) for image in images)
        several = len(images) > 1
        return [self.engine.prepare_image(image, several=several) for image in decoded]


def load(
    folder: str | PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: DtypeName | torch.dtype = "auto",
    settings: EngineConfig | None = None,
    fetch_image: FetchImage | None = None,
) -> ChatModel:
    """Load a model folder of caldera or of llava-hf, the model of a run's folder, or a model of the Hugging Face Hub.

    Args:
        folder: The folder, or a text ORG/NAME[@REVISION], which is downloaded if it is not in the Hub's cache; a `Path`
            is never such a name. With HF_HUB_OFFLINE=1 in the environment nothing is downloaded.
        device: A torch device, or "auto".
        dtype: Precision; "auto" is float32 if the model is stored so, else the fastest of the device: on CPUs bfloat16
            or float32, on GPUs float16 if stored so, else bfloat16 where the GPU has it.
        settings: Configuration of the engine, such as EngineConfig(quantization="int8").
        fetch_image: Function that returns the content of an image's URL; without it, URLs as images are errors.

    Raises:
        ModelFormatError: The folder is no such folder, and the message states what to do; or it cannot be loaded.
        HubError: A repository on the Hub or a file of it cannot be used.
        OutputError: The disk has too little space for the download.
        UsageError: There is no such device or precision, or the device does not support the quantization.
    """
    if not isinstance(folder, str | PathLike):
        raise UsageError(
            f"a model folder cannot be {shorten_value(folder)} of type {type(folder).__name__}; give its path"
        )
    if not isinstance(settings, EngineConfig | None):
        raise UsageError(
            f"settings is {shorten_value(settings)}; give caldera.EngineConfig(quantization='int8') or the like"
        )
    if fetch_image is not None and not callable(fetch_image):
        raise UsageError(
            f"fetch_image is {shorten_value(fetch_image)}; give a function from a URL to bytes"
        )
    name = str(dtype).removeprefix("torch.")
    if name not in get_args(DtypeName):
        raise UnknownNameError("dtype", name, get_args(DtypeName))
    compute = choose_device(str(device), name)  # type: ignore[arg-type] # checked above
    path = find_model(folder if isinstance(folder, str) else Path(folder))
    compute = with_stored_dtype(path, compute) if name == "auto" else compute
    return ChatModel(load_engine(path, compute, settings), fetch_image)
