"""Chat templates by exact name: render a Conversation as spans, each supervised or not.

Rendering a conversation that ends with a question adds the prefix of the answer, so the same code writes the prompts of
training and of inference.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import ConversationError, UnknownNameError

START, END = "<s>", "</s>"
"""Spellings, in a template's texts, of the tokenizer's own start and end token."""


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Plain text: no part of it can become a special token."""

    text: str
    supervised: bool = False
    isolated: bool = False
    """Whether a text that follows a special token or an image is tokenized as if nothing preceded it."""


@dataclass(frozen=True, slots=True)
class BoundaryToken:
    """The tokenizer's own start or end token."""

    which: Literal["start", "end"]
    supervised: bool = False


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token by its exact spelling."""

    spelling: str
    supervised: bool = False
    text_fallback: bool = False
    """Whether a tokenizer without this token encodes it as text."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The position of an image; it becomes as many tokens as the image has patches."""

    image: ImageRef


Span = TextSpan | BoundaryToken | SpecialToken | ImageSlot


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """Conversation format of one family of language models.

    The text is: start token, `prefix`, question, `before_answer`, `answer_prefix`, answer, `answer_suffix`; for each
    further turn `before_question`, question, `before_answer` and so on. Prefix, answer and suffix of an answer are
    supervised. In these texts START and END are the tokenizer's own tokens.
    """

    name: str

    models: str
    """Language models that use it."""

    prefix: str = ""
    before_answer: str = ""
    answer_prefix: str = ""
    answer_suffix: str = END
    before_question: str = ""

    tokens: tuple[str, ...] = ()
    """Special tokens in these texts, which the tokenizer must have."""

    tokens_or_text: tuple[str, ...] = ()
    """Special tokens in these texts that are encoded as text if the tokenizer lacks them."""

    stop: str | None = None
    """Text that ends an answer, if no special token does."""

    caption_only: bool = False
    """Whether it renders only the images and one caption, without the question."""

    isolated: bool = False
    """Whether texts after special tokens or images are tokenized by themselves; see `with_legacy_spacing`."""

    @property
    def end_token(self) -> str | None:
        """The special token that ends an answer, unless it is the tokenizer's own end token."""
        return self.answer_suffix if self.answer_suffix in self.tokens else None

    def render(self, conversation: Conversation) -> Iterator[Span]:
        """Yield the spans of a conversation; one that ends with a question ends with `before_answer`."""
        if self.caption_only:
            self._check_caption(conversation)
        yield BoundaryToken("start")
        before = self.prefix
        for turn in conversation.turns:
            if turn.role == "user":
                yield from self.split_special_tokens(before)
                for part in turn.images if self.caption_only else move_image_first(turn):
                    if isinstance(part, ImageRef):
                        yield ImageSlot(part)
                    else:
                        yield TextSpan(part, isolated=self.isolated)
                yield from self.split_special_tokens(self.before_answer)
                before = self.before_question
            else:
                yield TextSpan(
                    f"{self.answer_prefix}{turn.text}", supervised=True, isolated=self.isolated
                )
                yield from self.split_special_tokens(self.answer_suffix, supervised=True)

    def split_special_tokens(
        self, text: str, *, supervised: bool = False
    ) -> Iterator[TextSpan | BoundaryToken | SpecialToken]:
        """Split one of the template's own texts at its special tokens."""
        special = {START, END, *self.tokens, *self.tokens_or_text}
        for piece in re.split(f"({'|'.join(map(re.escape, special))})", text):
            if piece in (START, END):
                yield BoundaryToken("start" if piece == START else "end", supervised)
            elif piece in special:
                yield SpecialToken(piece, supervised, piece in self.tokens_or_text)
            elif piece:
                yield TextSpan(piece, supervised, self.isolated)

    def _check_caption(self, conversation: Conversation) -> None:
        """Raise unless there is one question with an image and at most one answer."""
        question, *answers = conversation.turns
        if not question.images or len(answers) > 1:
            raise ConversationError(
                f"record {conversation.id!r} has {len(conversation.turns)} turns, the first with "
                f"{len(question.images)} image(s); the template {self.name!r} takes images and one caption; use "
                "'vicuna_v1' for dialogues"
            )


def move_image_first(turn: Turn) -> tuple[str | ImageRef, ...]:
    """Return the parts with a single image moved to a line before the text, as LLaVA's trainer does.

    Several images stay in place. An image without text has no line end (LLaVA strips the full turn again).
    """
    if len(turn.images) != 1:
        return turn.parts
    words = turn.text.strip()
    return (*turn.images, f"\n{words}") if words else turn.images


def with_legacy_spacing(template: Template) -> Template:
    """Return the variant with the token ids that LLaVA-1.5 was trained with.

    Its slow tokenizer encoded each text between two special tokens or images by itself, so SentencePiece put a space
    before each of them: `</s>` is followed by the pieces of ` USER`, and an image by those of ` ` and the line end.
    Newer tokenizers put that space only at the beginning of the full text.
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
"""Special tokens of all templates; no text may become one of them."""


def find_template(name: str) -> Template:
    """Return the template called exactly `name`."""
    if name not in TEMPLATES:
        raise UnknownNameError("template", name, TEMPLATES)
    return TEMPLATES[name]
