"""Chat templates by exact name: the formats of language models, and their variants as LLaVA's own code trained them."""

from dataclasses import replace

from caldera.errors import UnknownNameError
from caldera.templates.template import END, START, Segmentation, Template

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HUMAN_SYSTEM = VICUNA_SYSTEM.replace("user", "human")
VISION_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
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
_LLAMA_2_CHAT = replace(_LLAMA_2, name="llama_2", models="LLaMA-2-chat", prefix="[INST] ")
_MISTRAL = replace(
    _LLAMA_2_CHAT,
    name="mistral_instruct",
    models="LLaVA-NeXT Mistral, Mistral-Instruct",
    before_question="[INST] ",
)
_CHATML_DIRECT = replace(
    _CHATML,
    name="chatml_direct",
    models="LLaVA-NeXT 34B, Nous-Hermes-2-Yi",
    prefix="<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n",
)
_QWEN = replace(
    _CHATML,
    name="qwen",
    models="Qwen2, Qwen2.5, Qwen3",
    prefix="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    before_answer="<|im_end|>\n<|im_start|>assistant\n",
    before_question="\n<|im_start|>user\n",
)
_LLAMA_3 = Template(
    name="llama_3",
    models="LLaMA-3-Instruct",
    prefix=f"<|start_header_id|>system<|end_header_id|>\n\n{VISION_SYSTEM}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n",
    before_answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    answer_suffix="<|eot_id|>",
    before_question="<|start_header_id|>user<|end_header_id|>\n\n",
    tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
_GEMMA = Template(
    name="gemma",
    models="Gemma, Gemma 2, Gemma 3",
    prefix="<start_of_turn>user\n",
    before_answer="<end_of_turn>\n<start_of_turn>model\n",
    answer_suffix="<end_of_turn>",
    before_question="\n<start_of_turn>user\n",
    tokens=("<start_of_turn>", "<end_of_turn>"),
)
_PHI = Template(
    name="phi",
    models="Phi-3",
    prefix="<|user|>\n",
    before_answer="<|end|>\n<|assistant|>\n",
    answer_suffix="<|end|>",
    before_question="\n<|user|>\n",
    tokens=("<|user|>", "<|assistant|>", "<|end|>"),
)


def _variant(template: Template, segmentation: Segmentation, reproduces: str) -> Template:
    """Return a template with another segmentation, which its name ends with."""
    return replace(
        template,
        name=f"{template.name}_{segmentation}",
        segmentation=segmentation,
        reproduces=reproduces,
    )


_LLAVA, _LLAVA_15, _LLAVA_NEXT = (
    "LLaVA c121f04, transformers 4.37.2",
    "LLaVA 44e0562, transformers 4.31.0",
    "LLaVA-NeXT df17966, transformers 4.37.2",
)

_V0_ORIGINAL = _variant(_V0, "original", _LLAVA)
_QWEN_ORIGINAL = _variant(_QWEN, "original", _LLAVA_NEXT)
_LLAMA_3_ORIGINAL = replace(_variant(_LLAMA_3, "original", _LLAVA_NEXT), strips_turns=True)
_GEMMA_ORIGINAL = _variant(_GEMMA, "original", _LLAVA_NEXT)

_ORIGINAL = (
    *(
        _variant(template, "original", _LLAVA)
        for template in (_PLAIN, _VICUNA, _LLAVA_V1, _LLAMA_2, _MISTRAL, _CHATML_DIRECT)
    ),
    _variant(_CHATML, "original", f"{_LLAVA_15}; with c121f04, ids only"),
    replace(
        _variant(_LLAMA_2_CHAT, "original", _LLAVA),
        prefix=f"[INST] <<SYS>>\n{LLAMA_2_SYSTEM}\n<</SYS>>\n\n",
    ),
    *(_variant(template, "original_4_31", _LLAVA_15) for template in (_VICUNA, _LLAVA_V1)),
    # The message of a user begins with two supervised tokens, the pieces of ### in LLaMA's vocabulary.
    replace(
        _V0_ORIGINAL,
        training=replace(
            _V0_ORIGINAL,
            prefix=f"{HUMAN_SYSTEM}\n\n[[###]] Human: ",
            before_answer="\n",
            answer_prefix="### Assistant: ",
            answer_suffix="\n###",
            before_question=" Human: ",
            closing=" ",
        ),
    ),
    replace(
        _QWEN_ORIGINAL,
        training=replace(
            _QWEN_ORIGINAL,
            keeps_first_image=True,
            prefix="[[<|im_start|>]]system\nYou are a helpful assistant.[[<|im_end|>]]\n[[<|im_start|>]]user\n",
            before_answer="[[<|im_end|>]]\n[[<|im_start|>assistant\n]]",
            answer_suffix="<|im_end|>\n",
            before_question="[[<|im_start|>]]user\n",
            newlines_supervised=True,
        ),
    ),
    replace(
        _LLAMA_3_ORIGINAL,
        training=replace(
            _LLAMA_3_ORIGINAL,
            keeps_first_image=True,
            prefix=f"[[<|start_header_id|>]]system[[<|end_header_id|>]]\n\n{VISION_SYSTEM}[[<|eot_id|>"
            "<|start_header_id|>]]user[[<|end_header_id|>]]\n\n",
            before_answer="[[<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n]]",
            before_question="[[<|start_header_id|>]]user[[<|end_header_id|>]]\n\n",
            start_supervised=True,
        ),
    ),
    replace(
        _GEMMA_ORIGINAL,
        training=replace(
            _GEMMA_ORIGINAL,
            keeps_first_image=True,
            answer_suffix="<end_of_turn>\n",
            before_question="<start_of_turn>user\n",
        ),
    ),
)
_LEGACY = tuple(
    # LLaVA trains v0 with another text.
    _variant(
        template, "legacy", "" if template is _V0 else "LLaVA with a slow tokenizer of legacy=True"
    )
    for template in (_PLAIN, _V0, _VICUNA, _LLAVA_V1, _LLAMA_2)
)
_STRICT = (
    _PLAIN,
    _V0,
    _VICUNA,
    _LLAVA_V1,
    _LLAMA_2,
    _LLAMA_2_CHAT,
    _MISTRAL,
    _CHATML,
    _CHATML_DIRECT,
    _QWEN,
    _LLAMA_3,
    _GEMMA,
    _PHI,
)

TEMPLATES: dict[str, Template] = {
    template.name: template for template in (*_STRICT, *_ORIGINAL, *_LEGACY)
}

SPECIAL_TOKENS = frozenset(
    token
    for template in TEMPLATES.values()
    for token in (*template.tokens, *template.tokens_or_text)
)
"""Special tokens of all templates; no text may become one of them."""


def find_template(name: str) -> Template:
    """Return the template called exactly `name`."""
    if name not in TEMPLATES:
        raise UnknownNameError("template", name, TEMPLATES)
    return TEMPLATES[name]
