"""A Conversation in, spans of prompt text out, each knowing whether the loss is taken on it.

`TEMPLATES` holds the ways of writing by exact name. Rendering a conversation whose last turn is the user's opens the
assistant's answer, so training and inference cannot drift apart.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import ConversationError, UnknownNameError

START, END = "<s>", "</s>"
"""How a template's texts spell the tokenizer's own start and end mark, whatever the tokenizer calls them."""


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Words, encoded as plain text: nothing in them can become a special token."""

    text: str
    supervised: bool = False
    isolated: bool = False
    """Whether it is tokenized, where it follows a mark or an image, as if it stood there alone."""


@dataclass(frozen=True, slots=True)
class BoundaryToken:
    """The tokenizer's own start of the sequence, or end of an answer."""

    which: Literal["start", "answer_suffix"]
    supervised: bool = False


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token by its exact spelling."""

    spelling: str
    supervised: bool = False
    text_fallback: bool = False
    """Whether a tokenizer that has no such token spells it as text."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of an image; it becomes as many tokens as the image has patches."""

    image: ImageRef


Span = TextSpan | BoundaryToken | SpecialToken | ImageSlot


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """How one family of language models wants a conversation written.

    After the start mark come `opening`, a question, `asked`, `lead`, the answer, `end`; then `again`, a question,
    `asked` and so on. Lead, answer and end are learned. In these texts START and END are the tokenizer's own marks.
    """

    name: str

    models: str
    """Language models it is for."""

    prefix: str = ""
    before_answer: str = ""
    answer_prefix: str = ""
    answer_suffix: str = END
    before_question: str = ""

    tokens: tuple[str, ...] = ()
    """Special tokens among these texts, which the tokenizer must have."""

    tokens_or_text: tuple[str, ...] = ()
    """Special tokens among these texts that may be plain text to a tokenizer."""

    stop: str | None = None
    """Text that ends an answer, where the end is no special token."""

    caption_only: bool = False
    """Whether it takes images and one caption, without the question."""

    isolated: bool = False
    """Whether a text that follows a mark or an image is tokenized as if it stood alone: LLaVA's way, see legacy()."""

    @property
    def end_token(self) -> str | None:
        """The special token that ends an answer, where it is not the tokenizer's own end mark."""
        return self.answer_suffix if self.answer_suffix in self.tokens else None

    def render(self, conversation: Conversation) -> Iterator[Span]:
        """Write a conversation; one whose last turn is the user's is opened for the answer.

        Raises:
            RecordError: The template takes captions, and it is not one.
        """
        if self.caption_only:
            self._check_caption(conversation)
        yield BoundaryToken("start")
        before = self.prefix
        for turn in conversation.turns:
            if turn.role == "user":
                yield from self.split_special_tokens(before)
                yield from self._question(turn)
                yield from self.split_special_tokens(self.before_answer)
                before = self.before_question
            else:
                yield TextSpan(
                    f"{self.answer_prefix}{turn.text}", supervised=True, isolated=self.isolated
                )
                yield from self.split_special_tokens(self.answer_suffix, learned=True)

    def split_special_tokens(
        self, text: str, *, learned: bool = False
    ) -> Iterator[TextSpan | BoundaryToken | SpecialToken]:
        """Cut one of the template's own texts at its marks."""
        marks = {START, END, *self.tokens, *self.tokens_or_text}
        for piece in re.split(f"({'|'.join(map(re.escape, marks))})", text):
            if piece in (START, END):
                yield BoundaryToken("start" if piece == START else "answer_suffix", learned)
            elif piece in marks:
                yield SpecialToken(piece, learned, piece in self.tokens_or_text)
            elif piece:
                yield TextSpan(piece, learned, self.isolated)

    def _question(self, turn: Turn) -> Iterator[TextSpan | ImageSlot]:
        """Turn the parts of a user's turn into spans."""
        for part in turn.images if self.caption_only else move_image_first(turn):
            yield (
                ImageSlot(part)
                if isinstance(part, ImageRef)
                else TextSpan(part, isolated=self.isolated)
            )

    def _check_caption(self, conversation: Conversation) -> None:
        """Refuse what is not one question with an image and at most one answer.

        Raises:
            RecordError: It is not.
        """
        question, *answers = conversation.turns
        if not question.images or len(answers) > 1:
            raise ConversationError(
                f"record {conversation.id!r} has {len(conversation.turns)} turns, the first with "
                f"{len(question.images)} image(s); the template {self.name!r} takes images and one caption, use "
                "'vicuna_v1' for dialogues"
            )


def move_image_first(turn: Turn) -> tuple[str | ImageRef, ...]:
    """Put a turn's lone image on a line before its words, as LLaVA's trainer does; keep several where they are.

    An image without words stands alone, without the line's end (spec 2.2: the whole is stripped once more).
    """
    if len(turn.images) != 1:
        return turn.parts
    words = turn.text.strip()
    return (*turn.images, f"\n{words}") if words else turn.images


def with_legacy_spacing(template: Template) -> Template:
    """Return the variant that gives the ids LLaVA-1.5 was trained with.

    Its slow tokenizer encoded each text between two special tokens or images by itself, so SentencePiece put a space
    before every one of them: `</s>` is followed by the pieces of ` USER`, and an image by those of ` ` and the line's
    end. Newer tokenizers put that space only where a text begins.
    """
    return replace(template, name=f"{template.name}_legacy", isolated=True)


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HUMAN_SYSTEM = VICUNA_SYSTEM.replace("user", "human")
VISION_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)

_PLAIN = Template(
    name="plain",
    models="stage 1: any",
    answer_suffix="\n",
    stop="\n",
    caption_only=True,
)
_V0 = Template(
    name="v0",
    models="LLaVA v0, Vicuna v0",
    prefix=f"{HUMAN_SYSTEM}###Human: ",
    before_answer="###Assistant:",
    answer_prefix=" ",
    answer_suffix="###",
    before_question="Human: ",
    stop="###",
)
_VICUNA = Template(
    name="vicuna_v1",
    models="LLaVA-1.5, Vicuna v1.1 to v1.5",
    prefix=f"{VICUNA_SYSTEM} USER: ",
    before_answer=" ASSISTANT:",
    answer_prefix=" ",
    before_question="USER: ",
)
_LLAVA_V1 = replace(
    _VICUNA, name="llava_v1", models="LLaVA v1, LLaVA-NeXT Vicuna", prefix=f"{HUMAN_SYSTEM} USER: "
)
_LLAMA_2 = Template(
    name="llava_llama_2",
    models="LLaVA on LLaMA-2-chat",
    prefix=f"[INST] <<SYS>>\n{VISION_SYSTEM}\n<</SYS>>\n\n",
    before_answer=" [/INST]",
    answer_prefix=" ",
    answer_suffix=f" {END}",
    before_question=f"{START}[INST] ",
    tokens_or_text=("[INST]", "[/INST]"),
)
_CHATML = Template(
    name="mpt",
    models="LLaVA on MPT-chat",
    prefix=f"<|im_start|>system\n{MPT_SYSTEM}<|im_end|><|im_start|>user\n",
    before_answer="<|im_end|><|im_start|>assistant\n",
    answer_suffix="<|im_end|>",
    before_question="<|im_start|>user\n",
    tokens=("<|im_start|>", "<|im_end|>"),
)
_TABLE = (
    _PLAIN,
    _V0,
    _VICUNA,
    _LLAVA_V1,
    _LLAMA_2,
    replace(_LLAMA_2, name="llama_2", models="LLaMA-2-chat", prefix="[INST] "),
    replace(
        _LLAMA_2,
        name="mistral_instruct",
        models="LLaVA-NeXT Mistral, Mistral-Instruct",
        prefix="[INST] ",
        before_question="[INST] ",
    ),
    _CHATML,
    replace(
        _CHATML,
        name="chatml_direct",
        models="LLaVA-NeXT 34B, Nous-Hermes-2-Yi",
        prefix="<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n",
    ),
    replace(
        _CHATML,
        name="qwen",
        models="Qwen2, Qwen2.5, Qwen3",
        prefix="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        before_answer="<|im_end|>\n<|im_start|>assistant\n",
        before_question="\n<|im_start|>user\n",
    ),
    Template(
        name="llama_3",
        models="LLaMA-3-Instruct",
        prefix=f"<|start_header_id|>system<|end_header_id|>\n\n{VISION_SYSTEM}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        before_answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        answer_suffix="<|eot_id|>",
        before_question="<|start_header_id|>user<|end_header_id|>\n\n",
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    Template(
        name="gemma",
        models="Gemma, Gemma 2, Gemma 3",
        prefix="<start_of_turn>user\n",
        before_answer="<end_of_turn>\n<start_of_turn>model\n",
        answer_suffix="<end_of_turn>",
        before_question="\n<start_of_turn>user\n",
        tokens=("<start_of_turn>", "<end_of_turn>"),
    ),
    Template(
        name="phi",
        models="Phi-3",
        prefix="<|user|>\n",
        before_answer="<|end|>\n<|assistant|>\n",
        answer_suffix="<|end|>",
        before_question="\n<|user|>\n",
        tokens=("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    *map(with_legacy_spacing, (_PLAIN, _V0, _VICUNA, _LLAVA_V1, _LLAMA_2)),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _TABLE}

SPECIAL_TOKENS = frozenset(
    token for template in _TABLE for token in (*template.tokens, *template.tokens_or_text)
)
"""Special tokens of all templates: no text may become one of them."""


def find_template(name: str) -> Template:
    """Return the template called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in TEMPLATES:
        raise UnknownNameError("template", name, TEMPLATES)
    return TEMPLATES[name]
