"""Inference engine: one thread owns the model and answers requests from any thread.

Interactive requests join and leave at any step (`submit`); offline requests run in batches (`submit_batch`). In fp32 a
greedy answer is the same either way. In bf16, sums are rounded differently in batches of other shapes, so nearly equal
logits can swap: other requests may change the answer of a submitted one. Batches of the same requests always give
the same answers.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import torch
from PIL import Image
from torch import Tensor

from caldera.conversation import Conversation
from caldera.devices import DeviceConfig
from caldera.errors import (
    CalderaError,
    EngineError,
    QueueFullError,
    UnknownNameError,
    UsageError,
    check_ranges,
)
from caldera.formats.photo_warning import PhotoWarning
from caldera.inference.attention_maps import AttentionMaps, compute_attention_maps
from caldera.inference.choose_decoder import choose_decoder, pack_vision_weights
from caldera.inference.packed_linear import Quantization
from caldera.inference.prompts import (
    ProcessedImage,
    Prompt,
    PromptBuilder,
    check_context_length,
    process_image,
)
from caldera.inference.requests import AnswerStream, Request, TextDelta, TokenLogprob, Usage
from caldera.inference.sampling import SamplingParams
from caldera.inference.scheduler import Scheduler, to_engine_error
from caldera.model.bundle import LlavaBundle

__all__ = [
    "AnswerStream",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Request",
    "SamplingParams",
    "TextDelta",
    "TokenLogprob",
    "Usage",
    "offline_config",
]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Limits of the engine, its caches, and its decoder."""

    slots: int = 8
    """Maximum number of requests that run together."""

    max_waiting: int = 128
    """Maximum number of requests that wait for a slot; one more is rejected."""

    prefill_chunk_size: int = 512
    """Tokens of a prompt that are prefilled in one step."""

    prefix_cache_bytes: int = 1 << 30
    """Memory for the prefixes of earlier requests; 0 disables the cache."""

    quantization: Quantization = "as stored"
    """Quantization of the language model's weights; int8 takes half the memory of bf16."""

    allow_fast_decoder: bool = True
    """Use a faster decoder than transformers' own where it gives the same logits."""

    def __post_init__(self) -> None:
        """Check every setting."""
        at_least_one = dict.fromkeys(("slots", "prefill_chunk_size"), "[1, inf]")
        at_least_zero = dict.fromkeys(("max_waiting", "prefix_cache_bytes"), "[0, inf]")
        check_ranges(self, {**at_least_one, **at_least_zero})
        if self.quantization not in get_args(Quantization):
            raise UnknownNameError("quantization", str(self.quantization), get_args(Quantization))


def offline_config(batch_size: int) -> EngineConfig:
    """Return the settings for answering batches: transformers' own decoder, and no caches between batches."""
    return EngineConfig(slots=batch_size, prefix_cache_bytes=0, allow_fast_decoder=False)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Current load of an engine, and totals since its start."""

    running: int
    waiting: int
    cache_bytes: int
    requests: int
    """Requests that were started; the fields below are totals over these."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""
    completion_tokens: int
    cache_hits: int
    """Requests whose prompt had a cached prefix."""
    failed: int
    cancelled: int


@dataclass(frozen=True, slots=True)
class _Submission:
    """Requests that were submitted together."""

    streams: tuple[AnswerStream, ...]
    is_batch: bool


class Engine(AbstractContextManager["Engine"]):
    """Answers requests with one assistant, many at a time."""

    def __init__(
        self,
        assistant: LlavaBundle,
        settings: EngineConfig | None = None,
        *,
        compute: DeviceConfig | None = None,
    ) -> None:
        """Answer with `assistant`, which nothing else may use meanwhile.

        Args:
            assistant: Stays on its device.
            settings: Limits and decoder.
            compute: Autocast matrix products to this precision; the weights' own if None.
        """
        self._assistant = assistant
        self.settings = settings or EngineConfig()
        self._compute = compute
        self._prompt_builder = PromptBuilder(assistant)
        self._photo_warning = PhotoWarning(assistant.card.source_digests)
        # a tokenizer is used by one thread at a time
        self._tokenizer_lock = threading.Lock()
        decoder = choose_decoder(
            assistant.model.language,
            self.settings.slots,
            quantization=self.settings.quantization,
            allow_fast=self.settings.allow_fast_decoder,
        )
        if self.settings.allow_fast_decoder:
            pack_vision_weights(assistant.model)
        self.description = decoder.description
        """Name of the decoder."""
        self._scheduler = Scheduler(
            assistant,
            decoder,
            slots=self.settings.slots,
            chunk=self.settings.prefill_chunk_size,
            cache_bytes=self.settings.prefix_cache_bytes,
            stops=self._prompt_builder.stops,
        )
        self._changed = threading.Condition()
        self._waiting: deque[_Submission] = deque()
        self._queued_calls: deque[tuple[Callable[[LlavaBundle], Any], Future[Any]]] = deque()
        self._closing: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="caldera engine", daemon=True)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        """Close the engine."""
        self.close()

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and answer together; None if the model states no limit."""
        return self._assistant.model.context_length

    @property
    def labels_images(self) -> bool:
        """If several images before a question have letters."""
        return self._prompt_builder.labels_images

    def prepare_image(self, image: Image.Image, *, several: bool | None = None) -> ProcessedImage:
        """Preprocess a decoded RGB image; `several` is as for `process_image`. Thread-safe."""
        self._photo_warning.check_image(image)
        return process_image(image, self._assistant.processor, several=several)

    def encode_views(self, pixels: Tensor) -> Tensor:
        """Return the vision tower's features of views, (views, patches, vision width), on the CPU. Thread-safe."""
        return self.run_between_steps(lambda assistant: _encode(assistant, pixels))

    def build_prompt(
        self, conversation: Conversation, images: Sequence[ProcessedImage] = ()
    ) -> Prompt:
        """Render and tokenize a conversation that ends with the user. Thread-safe.

        Args:
            conversation: The turns so far.
            images: One for each of its image slots, in order; the paths in it are not read.

        Raises:
            ConversationError: The model's template has no place for the conversation.
            ValueError: The numbers of images and slots differ.
        """
        with self._tokenizer_lock:
            return self._prompt_builder.from_images(conversation, images)

    def submit(self, request: Request) -> AnswerStream:
        """Request an answer. Thread-safe.

        Raises:
            UsageError: Prompt and answer exceed the model's context.
            QueueFullError: The maximum number of requests is waiting.
            EngineError: The engine is closed.
        """
        [stream] = self._submit([request], is_batch=False)
        return stream

    def submit_batch(self, requests: Sequence[Request]) -> list[AnswerStream]:
        """Request answers that are computed as one batch, at most `slots` of them. Thread-safe.

        The batch waits until nothing else runs, and other requests wait for its end.

        Raises:
            UsageError: A prompt and its answer exceed the model's context, or there are more requests than slots.
            EngineError: The engine is closed.
        """
        if len(requests) > self.settings.slots:
            raise UsageError(
                f"a batch has {len(requests)} requests, but the engine has {self.settings.slots} slots; split it"
            )
        return self._submit(requests, is_batch=True)

    def _submit(self, requests: Sequence[Request], *, is_batch: bool) -> list[AnswerStream]:
        """Queue requests."""
        for request in requests:
            check_context_length(request.prompt.ids, request.sampling, self.context_length)
        streams = [AnswerStream(request) for request in requests]
        with self._changed:
            if self._closing is not None:
                raise self._closing
            waiting = self._num_waiting
            can_start = len(self._scheduler.running) + waiting < self.settings.slots
            if not is_batch and waiting >= self.settings.max_waiting and not can_start:
                raise QueueFullError(
                    f"{waiting} requests are waiting already, which is the limit; retry later"
                )
            if streams:
                self._waiting.append(_Submission(tuple(streams), is_batch))
                self._changed.notify()
        return streams

    def attention_maps(
        self, conversation: Conversation, answer: str, images: Sequence[ProcessedImage]
    ) -> AttentionMaps:
        """Compute the attention maps of an answer. Thread-safe; blocks until the engine thread has run it.

        Args:
            conversation: The turns before the answer; it ends with the user.
            answer: Text of the answer.
            images: One for each of the conversation's image slots, in order.

        Raises:
            UsageError: The tokens exceed the model's context, or the model does not return attention weights.
            EngineError: The engine is closed, or the model failed.
        """
        with self._tokenizer_lock:
            prompt, num_tokens = self._prompt_builder.with_answer_and_images(
                conversation, answer, images
            )
        check_context_length(prompt.ids, SamplingParams(max_new_tokens=1), self.context_length)
        return self.run_between_steps(
            lambda assistant: compute_attention_maps(assistant, prompt, num_tokens)
        )

    def run_between_steps(self, call: Callable[[LlavaBundle], _Result]) -> _Result:
        """Run `call` on the engine's thread, between two steps, and return its result.

        Raises:
            EngineError: The engine is closed, or the model failed.
            CalderaError: An error of `call`.
        """
        future: Future[_Result] = Future()
        with self._changed:
            if self._closing is not None:
                raise self._closing
            self._queued_calls.append((call, future))
            self._changed.notify()
        return future.result()

    def stats(self) -> EngineStats:
        """Return the current load and totals. Thread-safe."""
        counters = self._scheduler.counters
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._num_waiting,
            cache_bytes=self._scheduler.cache_bytes,
            requests=counters.requests,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            completion_tokens=counters.completion_tokens,
            cache_hits=counters.cache_hits,
            failed=counters.failed,
            cancelled=counters.cancelled,
        )

    def close(self) -> None:
        """End all unfinished answers with an error, and the thread."""
        with self._changed:
            self._closing = self._closing or EngineError("the engine is closed; start it again")
            self._changed.notify()
        self._thread.join()

    @property
    def _num_waiting(self) -> int:
        return sum(len(submission.streams) for submission in list(self._waiting))

    def _run(self) -> None:
        """Run steps while there is anything to do."""
        try:
            with nullcontext() if self._compute is None else self._compute.autocast():
                while self._admit_waiting():
                    self._run_queued_call()
                    self._scheduler.step()
        except BaseException as error:  # noqa: BLE001 - readers of the streams must get it
            _log.exception("the engine's thread ended")
            with self._changed:
                self._closing = EngineError(
                    f"the engine failed ({type(error).__name__}: {error}); start it again"
                )
        assert self._closing is not None
        self._scheduler.fail_all(self._closing)
        for submission in self._waiting:
            for stream in submission.streams:
                stream.finish(self._closing)
        self._waiting.clear()
        for _, future in self._queued_calls:
            future.set_exception(self._closing)
        self._queued_calls.clear()

    def _run_queued_call(self) -> None:
        """Run one call of `run_between_steps`, if any waits."""
        with self._changed:
            if not self._queued_calls:
                return
            call, future = self._queued_calls.popleft()
        try:
            future.set_result(call(self._assistant))
        except CalderaError as error:
            future.set_exception(error)
        except (RuntimeError, MemoryError) as error:
            future.set_exception(to_engine_error(error))

    def _admit_waiting(self) -> bool:
        """Wait until there is something to do, and start waiting requests; return False when closing."""
        with self._changed:
            while self._closing is None and not (
                self._waiting or self._queued_calls or self._scheduler.running
            ):
                self._changed.wait()
            if self._closing is not None:
                return False
            self._drop_cancelled()
            while self._waiting and self._can_start(self._waiting[0]):
                submission = self._waiting.popleft()
                if submission.is_batch:
                    self._scheduler.add_batch(submission.streams)
                else:
                    self._scheduler.add(submission.streams[0])
        return True

    def _drop_cancelled(self) -> None:
        """End waiting requests that were cancelled; those of a batch end when it starts."""
        for submission in list(self._waiting):
            [stream, *rest] = submission.streams
            if not rest and stream.cancelled:
                self._waiting.remove(submission)
                stream.finish("cancelled")
                self._scheduler.counters.cancelled += 1

    def _can_start(self, submission: _Submission) -> bool:
        """Return whether a submission can start now; a batch runs alone."""
        return not self._scheduler.running if submission.is_batch else self._scheduler.has_room


@torch.inference_mode()
def _encode(assistant: LlavaBundle, pixels: Tensor) -> Tensor:
    """Return features of views, (views, channels, height, width)."""
    return assistant.model.patch_features(pixels.to(assistant.model.embedding_weight.device)).cpu()
