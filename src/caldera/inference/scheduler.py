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

from caldera.errors import EngineError, MemoryShortError
from caldera.inference.decoder import Decoder
from caldera.inference.prefix_cache import LeastRecentlyUsed, PrefixCache
from caldera.inference.prompts import PreparedPicture, Prompt
from caldera.inference.requests import Answering
from caldera.inference.running import Running, not_a_number
from caldera.inference.vocabulary import Vocabulary
from caldera.model.folder import Assistant
from caldera.model.splice import in_order

_PICTURES = 1024
"""Pictures whose image tokens are kept."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
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
        assistant: Assistant,
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
        self._vocabulary = Vocabulary(assistant)
        self._stops = tuple(stops)
        self._chunk = chunk
        self._free = list(range(slots))
        self._prefixes = PrefixCache(cache_bytes)
        self._seen: LeastRecentlyUsed[str, Tensor] = LeastRecentlyUsed(cache_bytes // 4, _PICTURES)
        self._embedded: dict[int, Tensor] = {}
        """Of requests that are still read, what the model has not read yet, by slot."""
        self._barred = torch.zeros(len(self._model.word_table), device=self._device)
        self._barred[self._vocabulary.barred] = -torch.inf
        self.running: list[Running] = []
        self.counts = Counts()

    @property
    def has_room(self) -> bool:
        """Whether another request can be added."""
        return bool(self._free)

    @property
    def cache_bytes(self) -> int:
        """Bytes that are kept of earlier requests."""
        return self._prefixes.bytes + self._seen.bytes

    @property
    def _device(self) -> torch.device:
        return self._model.word_table.device

    def add(self, answering: Answering) -> None:
        """Begin a request; there must be room."""
        slot = self._free.pop(0)
        self.running.append(Running(answering, slot, self._vocabulary, self._stops))
        self.counts.requests += 1

    @torch.inference_mode()
    def round(self) -> None:
        """Read a chunk, and give every request that is answered a token."""
        for one in self.running:
            if one.answering.cancelled:
                one.outcome = "cancelled"
                self.counts.cancelled += 1
        self._leave()
        reading = next((one for one in self.running if one.reading), None)
        if reading is not None:
            self._read(reading)
            self._leave()
        answering = [one for one in self.running if not one.reading and one is not reading]
        if answering:
            self._step(answering)
            self._leave()

    def fail_all(self, error: EngineError) -> None:
        """End every request with an error."""
        for one in self.running:
            one.outcome = error
        self._leave()

    def _leave(self) -> None:
        """Free the slots of requests that ended, and keep what was computed for them."""
        for one in [one for one in self.running if one.outcome is not None]:
            failed = isinstance(one.outcome, EngineError)
            if one.filled and not failed:
                self._keep(one)
            self._decoder.clear(one.slot)
            self._embedded.pop(one.slot, None)
            self.running.remove(one)
            self._free.append(one.slot)
            self.counts.failed += failed
            self.counts.completion_tokens += one.usage.completion_tokens
            one.tell_outcome()

    def _keep(self, one: Running) -> None:
        """Keep what was computed for a request, if there is memory for it."""
        try:
            kept = self._decoder.save(one.slot)
        except (RuntimeError, MemoryError) as error:
            _log.warning("a prompt is not kept for the next: %s", failure(error))
            return
        if kept is not None:
            self._prefixes.keep(one.read, kept)

    def _read(self, one: Running) -> None:
        """Read a prompt a chunk further; at its end choose the answer's first token."""
        try:
            if one.slot not in self._embedded:
                self._begin(one)
            left = self._embedded[one.slot]  # (tokens, width)
            logits = self._decoder.extend(one.slot, left[: self._chunk])
        except (RuntimeError, MemoryError) as error:
            one.outcome = failure(error)
            return
        one.filled += min(self._chunk, len(left))
        self._embedded[one.slot] = left[self._chunk :]
        if not one.reading:
            del self._embedded[one.slot]
            self.counts.prompt_tokens += len(one.prompt.ids)
            if logits.isfinite().all():  # what is no number would spoil all that begin alike
                self._keep(one)
            self._choose([one], logits.unsqueeze(0))

    def _begin(self, one: Running) -> None:
        """Take over what is kept of a prompt's start, and embed the rest."""
        found = self._prefixes.find(one.prompt)
        if found is not None:
            kept, common = found
            one.cached = min(common, len(one.prompt.ids) - 1)  # the last token's logits are wanted
            self._decoder.restore(one.slot, kept, one.cached)
            one.filled = one.cached
            self.counts.cached_tokens += one.cached
            self.counts.cache_hits += 1
        self._embedded[one.slot] = self._embed(one.prompt, one.cached)

    def _embed(self, prompt: Prompt, start: int) -> Tensor:
        """Return the model's input from a place of the prompt on, (tokens, width)."""
        ids = torch.tensor(prompt.ids[start:], device=self._device)
        embedded = self._model.language.get_input_embeddings()(ids)  # (tokens, width)
        for picture, at in zip(prompt.pictures, prompt.starts, strict=True):
            count = self._model.count_tokens(picture.layout)
            if at + count > start:
                tokens = self._look(picture)[max(0, start - at) :]
                place = max(0, at - start)
                embedded[place : place + len(tokens)] = tokens.to(embedded.dtype)
        return embedded

    def _look(self, picture: PreparedPicture) -> Tensor:
        """Return a picture's image tokens, (image tokens, width), from its pixels or from before."""
        kept = self._seen.get(picture.digest)
        if kept is not None:
            return kept
        projector = self._model.projector
        dtype = projector.layers[0].weight.dtype
        features = self._model.patch_features(picture.pixels.to(self._device)).to(dtype)
        tokens = in_order(projector(features), [picture.layout], projector.newline)
        self._seen.put(picture.digest, tokens, tokens.nbytes)
        return tokens

    def _step(self, answering: Sequence[Running]) -> None:
        """Give each request one token, all together; where that fails, one by one."""
        try:
            logits = self._decoder.step(
                [one.slot for one in answering], [one.last for one in answering]
            )
        except (RuntimeError, MemoryError) as error:
            if len(answering) == 1:
                answering[0].outcome = failure(error)
                return
            for one in answering:
                self._step([one])
            return
        for one in answering:
            one.filled += 1
        self._choose(answering, logits)

    def _choose(self, chosen_for: Sequence[Running], logits: Tensor) -> None:
        """Choose each request's next token by its row of `logits`, (rows, vocabulary)."""
        logits = logits.float() + self._barred
        likeliest = logits.argmax(dim=-1).tolist()
        sound = logits.amax(dim=-1).isfinite().tolist()  # NaN if one of the row is
        for one, row, best, good in zip(chosen_for, logits, likeliest, sound, strict=True):
            if good:
                one.take(best if one.greedy else one.draw(row), row)
            else:
                one.outcome = not_a_number()


def failure(error: RuntimeError | MemoryError) -> EngineError:
    """Say in a line why a request cannot go on."""
    said = str(error).strip().split("\n")[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in said:
        return MemoryShortError(
            "there is not enough memory for this request; ask for less, or later"
        )
    return EngineError(f"the model failed at this request: {said}")
