"""Scheduler for continuous batching: slots, chunked prefill, and one decoding step for all running requests.

In each step one request that is prefilling processes a chunk of its prompt, then every other request gets one token.
So requests join and leave at any step, and a long prompt delays the others by at most a chunk. If a step fails for
several requests together, each is tried alone, so that only those fail that cannot be computed.

A batch of offline requests is different: it is prefilled and decoded together, and nothing else runs until it ends.
Its answers depend on nothing but the batch, bit for bit, whatever the precision.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caldera.devices import is_out_of_memory
from caldera.errors import EngineError, OutOfMemoryError
from caldera.inference.decoder import Decoder
from caldera.inference.detokenizer import TokenIds
from caldera.inference.prefix_cache import LeastRecentlyUsed, PrefixCache
from caldera.inference.prompts import ProcessedImage, Prompt
from caldera.inference.requests import AnswerStream
from caldera.inference.sequence import SequenceState, nan_error
from caldera.model.bundle import LlavaBundle
from caldera.model.llava import order_image_tokens

_MAX_CACHED_IMAGES = 1024

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start."""

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
        """Run at most `slots` requests at a time, prefilling at most `chunk` tokens in a step."""
        self._model = assistant.model
        self._decoder = decoder
        self._token_ids = TokenIds(assistant)
        self._stops = tuple(stops)
        self._chunk = chunk
        self._free = list(range(slots))
        self._prefixes = PrefixCache(cache_bytes)
        self._image_token_cache: LeastRecentlyUsed[str, Tensor] = LeastRecentlyUsed(
            cache_bytes // 4, _MAX_CACHED_IMAGES
        )
        self._embedded: dict[int, Tensor] = {}
        """Input that a prefilling request has not processed yet, by slot."""
        self._in_batch = False
        """True while a batch of `add_batch` runs."""
        self._banned_logits = torch.zeros(len(self._model.embedding_weight), device=self._device)
        self._banned_logits[self._token_ids.banned] = -torch.inf
        self.running: list[SequenceState] = []
        self.counters = EngineCounters()

    @property
    def has_room(self) -> bool:
        """True if another request can be added."""
        return bool(self._free) and not self._in_batch

    @property
    def cache_bytes(self) -> int:
        """Bytes cached for later requests."""
        return self._prefixes.bytes + self._image_token_cache.bytes

    @property
    def _device(self) -> torch.device:
        return self._model.embedding_weight.device

    def add(self, stream: AnswerStream) -> None:
        """Start a request; there must be room."""
        slot = self._free.pop(0)
        self.running.append(SequenceState(stream, slot, self._token_ids, self._stops))
        self.counters.requests += 1

    def add_batch(self, streams: Sequence[AnswerStream]) -> None:
        """Start requests that run as one batch; nothing else may be running."""
        for stream in streams:
            self.add(stream)
        self._in_batch = True

    @torch.inference_mode()
    def step(self) -> None:
        """Prefill a chunk, and decode one token of every request that is prefilled."""
        for sequence in self.running:
            if sequence.stream.cancelled:
                sequence.outcome = "cancelled"
                self.counters.cancelled += 1
        self._finish_ended()
        prefilling = [sequence for sequence in self.running if sequence.is_prefilling]
        decoding = [sequence for sequence in self.running if not sequence.is_prefilling]
        if prefilling and self._in_batch:
            self._prefill_batch(prefilling)
        elif prefilling:
            self._prefill_chunk(prefilling[0])
        self._finish_ended()
        if decoding:
            self._decode(decoding)
            self._finish_ended()

    def fail_all(self, error: EngineError) -> None:
        """End every running request with an error."""
        for sequence in self.running:
            sequence.outcome = error
        self._finish_ended()

    def _finish_ended(self) -> None:
        """Free the slots of requests that ended, and cache their prefixes."""
        for sequence in [sequence for sequence in self.running if sequence.outcome is not None]:
            failed = isinstance(sequence.outcome, EngineError)
            if sequence.num_computed_tokens and not failed:
                self._store_prefix(sequence)
            self._decoder.reset(sequence.slot)
            self._embedded.pop(sequence.slot, None)
            self.running.remove(sequence)
            self._free.append(sequence.slot)
            self.counters.failed += failed
            self.counters.completion_tokens += sequence.usage.completion_tokens
            sequence.finish_stream()
        self._in_batch = self._in_batch and bool(self.running)

    def _store_prefix(self, sequence: SequenceState) -> None:
        """Cache the keys and values of a request, if there is memory for them."""
        if self._in_batch:
            return
        try:
            exported = self._decoder.export_cache(sequence.slot)
        except (RuntimeError, MemoryError) as error:
            _log.warning("cannot cache a prefix: %s", to_engine_error(error))
            return
        if exported is not None:
            self._prefixes.insert(sequence.consumed, exported)

    def _prefill_batch(self, batch: Sequence[SequenceState]) -> None:
        """Prefill all prompts of a batch and choose the first tokens."""
        prompts = [sequence.prompt for sequence in batch]
        try:
            slots = [sequence.slot for sequence in batch]
            logits = self._decoder.prefill_batch(slots, self._embed_batch(prompts))
        except (RuntimeError, MemoryError) as error:
            for sequence in batch:
                sequence.outcome = to_engine_error(error)
            return
        for sequence, prompt in zip(batch, prompts, strict=True):
            sequence.num_computed_tokens = len(prompt.ids)
            self.counters.prompt_tokens += len(prompt.ids)
        self._sample(batch, logits)

    def _embed_batch(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Return the model's input of each prompt, (tokens, width); all images are projected together."""
        ids = [token for prompt in prompts for token in prompt.ids]
        images = [image for prompt in prompts for image in prompt.images]
        views = torch.cat([image.views for image in images]) if images else torch.zeros(0)
        embedded = self._model.embed(
            torch.tensor(ids, device=self._device),
            views.to(self._device),
            [image.layout for image in images],
        )  # (all tokens, width)
        return list(embedded.split([len(prompt.ids) for prompt in prompts]))

    def _prefill_chunk(self, sequence: SequenceState) -> None:
        """Process the next chunk of a prompt; at its end choose the answer's first token."""
        try:
            if sequence.slot not in self._embedded:
                self._start_prefill(sequence)
            embedded = self._embedded[sequence.slot]  # (tokens, width)
            logits = self._decoder.prefill(sequence.slot, embedded[: self._chunk])
        except (RuntimeError, MemoryError) as error:
            sequence.outcome = to_engine_error(error)
            return
        sequence.num_computed_tokens += min(self._chunk, len(embedded))
        self._embedded[sequence.slot] = embedded[self._chunk :]
        if not sequence.is_prefilling:
            del self._embedded[sequence.slot]
            self.counters.prompt_tokens += len(sequence.prompt.ids)
            # do not cache a prefix with NaN: later requests would reuse it
            if logits.isfinite().all():
                self._store_prefix(sequence)
            self._sample([sequence], logits.unsqueeze(0))

    def _start_prefill(self, sequence: SequenceState) -> None:
        """Reuse the cached prefix of a prompt, and embed the rest."""
        match = self._prefixes.lookup(sequence.prompt)
        if match is not None:
            cached, common = match
            # the last token is processed in any case: its logits are needed
            sequence.num_cached_tokens = min(common, len(sequence.prompt.ids) - 1)
            self._decoder.import_cache(sequence.slot, cached, sequence.num_cached_tokens)
            sequence.num_computed_tokens = sequence.num_cached_tokens
            self.counters.cached_tokens += sequence.num_cached_tokens
            self.counters.cache_hits += 1
        self._embedded[sequence.slot] = self._embed(sequence.prompt, sequence.num_cached_tokens)

    def _embed(self, prompt: Prompt, start: int) -> Tensor:
        """Return the model's input from position `start` on, (tokens, width)."""
        ids = torch.tensor(prompt.ids[start:], device=self._device)
        embedded = self._model.language.get_input_embeddings()(ids)  # (tokens, width)
        for image, image_start in zip(prompt.images, prompt.starts, strict=True):
            count = self._model.count_tokens(image.layout)
            if image_start + count > start:
                tokens = self._image_tokens(image)[max(0, start - image_start) :]
                first = max(0, image_start - start)
                embedded[first : first + len(tokens)] = tokens.to(embedded.dtype)
        return embedded

    def _image_tokens(self, image: ProcessedImage) -> Tensor:
        """Return an image's tokens, (image tokens, width); each image is encoded once while it is cached."""
        cached = self._image_token_cache.get(image.digest)
        if cached is not None:
            return cached
        projector = self._model.projector
        dtype = projector.layers[0].weight.dtype
        features = self._model.patch_features(image.views.to(self._device)).to(dtype)
        tokens = order_image_tokens(projector(features), [image.layout], projector.image_newline)
        self._image_token_cache.put(image.digest, tokens, tokens.nbytes)
        return tokens

    def _decode(self, sequences: Sequence[SequenceState]) -> None:
        """Decode one token of each request together; if that fails, one by one."""
        try:
            logits = self._decoder.decode(
                [sequence.slot for sequence in sequences],
                [sequence.last_token for sequence in sequences],
            )
        except (RuntimeError, MemoryError) as error:
            if len(sequences) == 1 or self._in_batch:
                for sequence in sequences:
                    sequence.outcome = to_engine_error(error)
                return
            for sequence in sequences:
                self._decode([sequence])
            return
        for sequence in sequences:
            sequence.num_computed_tokens += 1
        self._sample(sequences, logits)

    def _sample(self, sequences: Sequence[SequenceState], logits: Tensor) -> None:
        """Choose each request's next token from its row of `logits`, (rows, vocabulary)."""
        logits = logits.float() + self._banned_logits
        most_likely = logits.argmax(dim=-1).tolist()
        finite = logits.amax(dim=-1).isfinite().tolist()  # False for rows with NaN
        for sequence, row, token, is_finite in zip(
            sequences, logits, most_likely, finite, strict=True
        ):
            if is_finite:
                sequence.append(token if sequence.greedy else sequence.sample(row), row)
            else:
                sequence.outcome = nan_error()


def to_engine_error(error: RuntimeError | MemoryError) -> EngineError:
    """Return a one-line error for a request that failed in the model."""
    first_line = str(error).strip().split("\n")[0]
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "there is not enough memory for this request; shorten it, or retry later"
        )
    return EngineError(f"the model failed at this request: {first_line}")
