"""Requests in, all of them answered side by side out: which slot each gets, what is read next, one step for all.

In each round one request that is still read is read a chunk further, then every request that is being answered gets
one token. So requests join and leave at any step, and a long prompt does not stop the others for longer than a chunk
takes. Where a step fails for several together, each is tried alone, so that only those fail that cannot be done.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caldera.errors import EngineError, OutOfMemoryError
from caldera.inference.decoder import Decoder
from caldera.inference.detokenizer import TokenIds
from caldera.inference.prefix_cache import LeastRecentlyUsed, PrefixCache
from caldera.inference.prompts import ProcessedImage, Prompt
from caldera.inference.requests import AnswerStream
from caldera.inference.sequence import SequenceState, nan_error
from caldera.model.assistant import LlavaBundle
from caldera.model.llava import order_image_tokens

_IMAGES = 1024
"""Images whose image tokens are kept."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineCounters:
    """What was done since the start."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cache_hits: int = 0
    failed: int = 0
    cancelled: int = 0


class Scheduler:
    """Runs requests with one assistant; used by one thread."""

    def __init__(
        self,
        assistant: LlavaBundle,
        decoder: Decoder,
        *,
        slots: int,
        chunk: int,
        cache_bytes: int,
        stops: Sequence[str],
    ) -> None:
        """Run up to `slots` requests at a time, reading `chunk` tokens at a time."""
        self._model = assistant.model
        self._decoder = decoder
        self._vocabulary = TokenIds(assistant)
        self._stops = tuple(stops)
        self._chunk = chunk
        self._free = list(range(slots))
        self._prefixes = PrefixCache(cache_bytes)
        self._image_token_cache: LeastRecentlyUsed[str, Tensor] = LeastRecentlyUsed(
            cache_bytes // 4, _IMAGES
        )
        self._embedded: dict[int, Tensor] = {}
        """Of requests that are still read, what the model has not read yet, by slot."""
        self._banned_logits = torch.zeros(len(self._model.embedding_weight), device=self._device)
        self._banned_logits[self._vocabulary.banned] = -torch.inf
        self.running: list[SequenceState] = []
        self.counts = EngineCounters()

    @property
    def has_room(self) -> bool:
        """Whether another request can be added."""
        return bool(self._free)

    @property
    def cache_bytes(self) -> int:
        """Bytes that are kept of earlier requests."""
        return self._prefixes.bytes + self._image_token_cache.bytes

    @property
    def _device(self) -> torch.device:
        return self._model.embedding_weight.device

    def add(self, answering: AnswerStream) -> None:
        """Begin a request; there must be room."""
        slot = self._free.pop(0)
        self.running.append(SequenceState(answering, slot, self._vocabulary, self._stops))
        self.counts.requests += 1

    @torch.inference_mode()
    def step(self) -> None:
        """Read a chunk, and give every request that is answered a token."""
        for one in self.running:
            if one.answering.cancelled:
                one.outcome = "cancelled"
                self.counts.cancelled += 1
        self._finish_ended()
        reading = next((one for one in self.running if one.is_prefilling), None)
        if reading is not None:
            self._prefill_chunk(reading)
            self._finish_ended()
        answering = [one for one in self.running if not one.is_prefilling and one is not reading]
        if answering:
            self._decode(answering)
            self._finish_ended()

    def fail_all(self, error: EngineError) -> None:
        """End every request with an error."""
        for one in self.running:
            one.outcome = error
        self._finish_ended()

    def _finish_ended(self) -> None:
        """Free the slots of requests that ended, and keep what was computed for them."""
        for one in [one for one in self.running if one.outcome is not None]:
            failed = isinstance(one.outcome, EngineError)
            if one.num_computed_tokens and not failed:
                self._store_prefix(one)
            self._decoder.reset(one.slot)
            self._embedded.pop(one.slot, None)
            self.running.remove(one)
            self._free.append(one.slot)
            self.counts.failed += failed
            self.counts.completion_tokens += one.usage.completion_tokens
            one.finish_stream()

    def _store_prefix(self, one: SequenceState) -> None:
        """Keep what was computed for a request, if there is memory for it."""
        try:
            kept = self._decoder.export_cache(one.slot)
        except (RuntimeError, MemoryError) as error:
            _log.warning("a prompt is not kept for the next: %s", to_engine_error(error))
            return
        if kept is not None:
            self._prefixes.insert(one.consumed, kept)

    def _prefill_chunk(self, one: SequenceState) -> None:
        """Read a prompt a chunk further; at its end choose the answer's first token."""
        try:
            if one.slot not in self._embedded:
                self._start_prefill(one)
            left = self._embedded[one.slot]  # (tokens, width)
            logits = self._decoder.prefill(one.slot, left[: self._chunk])
        except (RuntimeError, MemoryError) as error:
            one.outcome = to_engine_error(error)
            return
        one.num_computed_tokens += min(self._chunk, len(left))
        self._embedded[one.slot] = left[self._chunk :]
        if not one.is_prefilling:
            del self._embedded[one.slot]
            self.counts.prompt_tokens += len(one.prompt.ids)
            if logits.isfinite().all():  # what is no number would spoil all that begin alike
                self._store_prefix(one)
            self._sample([one], logits.unsqueeze(0))

    def _start_prefill(self, one: SequenceState) -> None:
        """Take over what is kept of a prompt's start, and embed the rest."""
        found = self._prefixes.lookup(one.prompt)
        if found is not None:
            kept, common = found
            one.num_cached_tokens = min(
                common, len(one.prompt.ids) - 1
            )  # the last token's logits are wanted
            self._decoder.import_cache(one.slot, kept, one.num_cached_tokens)
            one.num_computed_tokens = one.num_cached_tokens
            self.counts.cached_tokens += one.num_cached_tokens
            self.counts.cache_hits += 1
        self._embedded[one.slot] = self._embed(one.prompt, one.num_cached_tokens)

    def _embed(self, prompt: Prompt, start: int) -> Tensor:
        """Return the model's input from a place of the prompt on, (tokens, width)."""
        ids = torch.tensor(prompt.ids[start:], device=self._device)
        embedded = self._model.language.get_input_embeddings()(ids)  # (tokens, width)
        for image, at in zip(prompt.images, prompt.starts, strict=True):
            count = self._model.count_tokens(image.layout)
            if at + count > start:
                tokens = self._image_tokens(image)[max(0, start - at) :]
                place = max(0, at - start)
                embedded[place : place + len(tokens)] = tokens.to(embedded.dtype)
        return embedded

    def _image_tokens(self, image: ProcessedImage) -> Tensor:
        """Return an image's image tokens, (image tokens, width), from its pixels or from before."""
        kept = self._image_token_cache.get(image.digest)
        if kept is not None:
            return kept
        projector = self._model.projector
        dtype = projector.layers[0].weight.dtype
        features = self._model.patch_features(image.pixels.to(self._device)).to(dtype)
        tokens = order_image_tokens(projector(features), [image.layout], projector.image_newline)
        self._image_token_cache.put(image.digest, tokens, tokens.nbytes)
        return tokens

    def _decode(self, answering: Sequence[SequenceState]) -> None:
        """Give each request one token, all together; where that fails, one by one."""
        try:
            logits = self._decoder.decode(
                [one.slot for one in answering], [one.last_token for one in answering]
            )
        except (RuntimeError, MemoryError) as error:
            if len(answering) == 1:
                answering[0].outcome = to_engine_error(error)
                return
            for one in answering:
                self._decode([one])
            return
        for one in answering:
            one.num_computed_tokens += 1
        self._sample(answering, logits)

    def _sample(self, chosen_for: Sequence[SequenceState], logits: Tensor) -> None:
        """Choose each request's next token by its row of `logits`, (rows, vocabulary)."""
        logits = logits.float() + self._banned_logits
        likeliest = logits.argmax(dim=-1).tolist()
        sound = logits.amax(dim=-1).isfinite().tolist()  # NaN if one of the row is
        for one, row, best, good in zip(chosen_for, logits, likeliest, sound, strict=True):
            if good:
                one.append(best if one.greedy else one.sample(row), row)
            else:
                one.outcome = nan_error()


def to_engine_error(error: RuntimeError | MemoryError) -> EngineError:
    """Say in a line why a request cannot go on."""
    said = str(error).strip().split("\n")[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in said:
        return OutOfMemoryError(
            "there is not enough memory for this request; ask for less, or later"
        )
    return EngineError(f"the model failed at this request: {said}")
