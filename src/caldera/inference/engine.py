"""Requests from any thread in, answers out piece by piece: one thread owns the model and steps it for all of them."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from PIL import Image

from caldera.conversation import Conversation
from caldera.errors import CalderaError, EngineError, QueueFullError, UsageError
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
from caldera.model.assistant import LlavaBundle

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
]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How much the engine does at a time, and what it keeps."""

    slots: int = 8
    """Requests that are answered side by side."""

    max_waiting: int = 128
    """Requests that may wait for a slot; one more is refused."""

    prefill_chunk_size: int = 512
    """Tokens of a prompt that are read before the other answers get their next token."""

    prefix_cache_bytes: int = 1 << 30
    """Memory for what was computed for earlier requests; 0 keeps nothing."""

    quantization: Quantization = "as stored"
    """Of the language model's weights; int8 takes half the memory of bf16."""

    allow_fast_decoder: bool = True
    """Whether a faster way than transformers' own may be taken, where it gives the same."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            UsageError: One is out of its range.
        """
        for name, least in (
            ("slots", 1),
            ("max_waiting", 0),
            ("prefill_chunk_size", 1),
            ("prefix_cache_bytes", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine does and did."""

    running: int
    waiting: int
    cache_bytes: int
    requests: int
    """Begun since the start; all that follow are sums over these."""
    prompt_tokens: int
    cached_tokens: int
    """Tokens of prompts that were kept from earlier ones."""
    completion_tokens: int
    cache_hits: int
    """Requests whose prompt began as an earlier one."""
    failed: int
    cancelled: int


class Engine:
    """Answers requests with one assistant, many at a time."""

    def __init__(self, assistant: LlavaBundle, settings: EngineConfig | None = None) -> None:
        """Answer with `assistant`, which nothing else may use meanwhile."""
        self._assistant = assistant
        self.settings = settings or EngineConfig()
        self._prompter = PromptBuilder(assistant)
        self._rendering = threading.Lock()  # a tokenizer serves one thread at a time
        decoder = choose_decoder(
            assistant.model.language,
            self.settings.slots,
            bits=self.settings.quantization,
            fast=self.settings.allow_fast_decoder,
        )
        if self.settings.allow_fast_decoder:
            pack_vision_weights(assistant.model)
        self.description = decoder.description
        """Which decoder it answers with."""
        self._scheduler = Scheduler(
            assistant,
            decoder,
            slots=self.settings.slots,
            chunk=self.settings.prefill_chunk_size,
            cache_bytes=self.settings.prefix_cache_bytes,
            stops=self._prompter.stops,
        )
        self._changed = threading.Condition()
        self._waiting: deque[AnswerStream] = deque()
        self._between: deque[tuple[Callable[[LlavaBundle], Any], Future[Any]]] = deque()
        self._closing: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="caldera engine", daemon=True)
        self._thread.start()

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

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and answer may have together; None if the model states no limit."""
        return self._assistant.model.context_length

    def prepare_image(self, image: Image.Image) -> ProcessedImage:
        """Prepare a decoded RGB image; any thread may."""
        return process_image(image, self._assistant.processor)

    def build_prompt(
        self, conversation: Conversation, images: Sequence[ProcessedImage] = ()
    ) -> Prompt:
        """Render a conversation that ends with the user; any thread may.

        Args:
            conversation: What was said so far.
            images: One for each of its images, in order; its paths are not looked at.

        Raises:
            RecordError: The model's template has no place for it.
            ValueError: Images and places differ in number.
        """
        with self._rendering:
            return self._prompter.from_images(conversation, images)

    def submit(self, request: Request) -> AnswerStream:
        """Ask for an answer; any thread may.

        Raises:
            UsageError: Prompt and answer do not fit the model's context.
            BusyError: As many requests as may wait are waiting.
            EngineError: The engine is closed.
        """
        check_context_length(request.prompt.ids, request.sampling, self.context_length)
        answering = AnswerStream(request)
        with self._changed:
            if self._closing is not None:
                raise self._closing
            if len(self._waiting) >= self.settings.max_waiting and not self._can_start_now():
                raise QueueFullError(
                    f"{len(self._waiting)} requests are waiting already, which is the limit; ask again later"
                )
            self._waiting.append(answering)
            self._changed.notify()
        return answering

    def attention_maps(
        self, conversation: Conversation, answer: str, images: Sequence[ProcessedImage]
    ) -> AttentionMaps:
        """Return what an answer attended to, once it is the turn of it; any thread may ask, and waits.

        Args:
            conversation: What was said before the answer; it ends with the user.
            answer: What was answered.
            images: One for each of the conversation's images, in order.

        Raises:
            UsageError: It does not fit the model's context, or the language model does not tell.
            EngineError: The engine is closed, or the model failed at it.
        """
        with self._rendering:
            prompt, tokens = self._prompter.with_answer_and_images(conversation, answer, images)
        check_context_length(prompt.ids, SamplingParams(max_new_tokens=1), self.context_length)
        return self.run_between_steps(
            lambda assistant: compute_attention_maps(assistant, prompt, tokens)
        )

    def run_between_steps(self, work: Callable[[LlavaBundle], _Result]) -> _Result:
        """Have `work` done with the assistant by the engine's thread, between two steps, and wait for what it returns.

        Raises:
            EngineError: The engine is closed, or the model failed at it.
            CalderaError: What `work` raises.
        """
        promised: Future[_Result] = Future()
        with self._changed:
            if self._closing is not None:
                raise self._closing
            self._between.append((work, promised))
            self._changed.notify()
        return promised.result()

    def stats(self) -> EngineStats:
        """Return what it does and did; any thread may ask."""
        counts = self._scheduler.counts
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._waiting),
            cache_bytes=self._scheduler.cache_bytes,
            requests=counts.requests,
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            completion_tokens=counts.completion_tokens,
            cache_hits=counts.cache_hits,
            failed=counts.failed,
            cancelled=counts.cancelled,
        )

    def close(self) -> None:
        """End all answers that are not finished with an error, and the thread."""
        with self._changed:
            self._closing = self._closing or EngineError("the engine is closed; start it again")
            self._changed.notify()
        self._thread.join()

    def _can_start_now(self) -> bool:
        """Tell whether the next request begins at once."""
        return len(self._scheduler.running) + len(self._waiting) < self.settings.slots

    @property
    def _has_work(self) -> bool:
        return bool(self._waiting or self._between or self._scheduler.running)

    def _run(self) -> None:
        """Step the model while there is anything to do."""
        try:
            while self._admit_waiting():
                self._run_queued_call()
                self._scheduler.step()
        except BaseException as error:  # noqa: BLE001 - those who wait must hear of it
            _log.exception("the engine's thread ended")
            with self._changed:
                self._closing = EngineError(
                    f"the engine broke down ({type(error).__name__}: {error}); start it again"
                )
        assert self._closing is not None
        self._scheduler.fail_all(self._closing)
        for answering in self._waiting:
            answering.finish(self._closing)
        self._waiting.clear()
        for _, promised in self._between:
            promised.set_exception(self._closing)
        self._between.clear()

    def _run_queued_call(self) -> None:
        """Do one piece of other work, if any waits."""
        with self._changed:
            if not self._between:
                return
            work, promised = self._between.popleft()
        try:
            promised.set_result(work(self._assistant))
        except CalderaError as error:
            promised.set_exception(error)
        except (RuntimeError, MemoryError) as error:
            promised.set_exception(to_engine_error(error))

    def _admit_waiting(self) -> bool:
        """Wait until there is something to do, and give waiting requests to the scheduler; False at the end."""
        with self._changed:
            while not self._has_work and self._closing is None:
                self._changed.wait()
            if self._closing is not None:
                return False
            for answering in [one for one in self._waiting if one.cancelled]:
                self._waiting.remove(answering)
                answering.finish("cancelled")
                self._scheduler.counts.cancelled += 1
            while self._waiting and self._scheduler.has_room:
                self._scheduler.add(self._waiting.popleft())
        return True
