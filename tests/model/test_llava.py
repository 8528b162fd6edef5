"""Image tokens are inserted at their positions; the loss is the cross entropy of the language model's own logits."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from caldera.batches.packing import build_packs, collate
from caldera.batches.samples import Sample
from caldera.errors import ModelFormatError
from caldera.images.anyres import SINGLE_VIEW
from caldera.model import llava
from caldera.model.llava import (
    LOGIT_TRANSFORMS,
    Llava,
    check_logits_match,
    chunked_cross_entropy,
    insert_image_tokens,
)
from caldera.model.projector import build_projector
from caldera.model.vision_tower import VisionTower
from caldera.templates.encoding import IGNORE_INDEX
from tests.laying import padded

VOCABULARY, IMAGE = 37, 36
WIDTHS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
HEADS: dict[str, Any] = {**WIDTHS, "head_dim": 6}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**WIDTHS),
    "qwen2": Qwen2Config(**WIDTHS),
    "phi3": Phi3Config(**WIDTHS),
    "gemma": GemmaConfig(**HEADS),
    "gemma2": Gemma2Config(**HEADS, final_logit_softcapping=2.0),
    "granite": GraniteConfig(**WIDTHS, logits_scaling=7.0),
    "cohere": CohereConfig(**WIDTHS, logit_scale=0.3),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        word_embed_proj_dim=12,
        ffn_dim=22,
        num_hidden_layers=2,
        num_attention_heads=2,
        init_std=0.5,
    ),
}


def language_model(family: str) -> PreTrainedModel:
    """Return a tiny random language model in evaluation mode."""
    torch.manual_seed(4)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(FAMILIES[family])
    return model.eval()


def build_llava(language: PreTrainedModel) -> Llava:
    """Return a model with a tower of 3 x 3 patches."""
    shape = CLIPVisionConfig(
        hidden_size=10,
        intermediate_size=14,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=6,
        patch_size=2,
    )
    tower = VisionTower(CLIPVisionModel(shape).eval(), side=6)
    return Llava(tower, build_projector("mlp2x_gelu", 10, 12), language, IMAGE).eval()


def samples() -> list[Sample]:
    """Return two samples of different lengths, the second with an image."""
    rng = torch.Generator().manual_seed(5)
    first, second = (
        torch.randint(3, IMAGE, (length,), generator=rng).tolist() for length in (9, 17)
    )
    second[2:11] = [IMAGE] * 9
    images = ((Path("a.png"),), (SINGLE_VIEW,), (11,))
    return [
        Sample("a", tuple(first), (*[IGNORE_INDEX] * 5, *first[5:]), (), (), ()),
        Sample("b", tuple(second), (*[IGNORE_INDEX] * 12, *second[12:]), *images),
    ]


@torch.no_grad()
def test_a_frozen_language_model_has_no_dropout() -> None:
    """OPT's layers apply dropout themselves, in training mode; frozen they stay in evaluation mode."""
    model = build_llava(language_model("opt"))
    model.language.requires_grad_(False)
    batch = collate(build_packs(samples(), share=False), lambda *_: torch.zeros(1, 3, 6, 6))

    frozen = [model.train()(batch).total for _ in range(2)]
    model.language.requires_grad_(True)
    trained = [model.train()(batch).total for _ in range(2)]

    assert torch.equal(*frozen)
    assert not torch.equal(*trained)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_loss_is_that_of_the_models_own_logits(family: str) -> None:
    """Logits at labeled positions alone give the loss that transformers' logits at all positions give."""
    language: Any = language_model(family)
    model, rows = build_llava(language), padded(samples())
    pixels = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    batch = collate(build_packs(samples(), share=False), lambda paths, layouts=None: pixels)
    check_logits_match(language)
    logits = language(
        inputs_embeds=model.embed(rows.ids, pixels, batch.layouts),
        attention_mask=rows.mask,
    ).logits  # (rows, tokens, vocabulary)

    expected = cross_entropy(
        logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), reduction="sum"
    )

    loss = model(batch)
    assert loss.num_tokens == 9
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", LOGIT_TRANSFORMS)
def test_every_logit_transform_is_that_of_a_family(setting: str) -> None:
    """Each setting of the table belongs to a model above, where it is not neutral."""
    values = [config.to_dict().get(setting) for config in FAMILIES.values()]
    assert [value for value in values if value not in (None, 1.0)]


def test_a_model_with_another_transform_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose own logits differ from those of the loss is not joined."""
    language = language_model("granite")
    monkeypatch.delitem(LOGIT_TRANSFORMS, "logits_scaling")
    with pytest.raises(ModelFormatError, match="'granite' change their logits"):
        check_logits_match(language)


def test_image_tokens_are_inserted_in_order() -> None:
    """The first image fills the first marked tokens, the next image the next; text is unchanged."""
    words = torch.zeros(2, 7, 3)
    image = torch.arange(2 * 2 * 3, dtype=torch.float32).reshape(2, 2, 3) + 1
    marks = torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1, 0]], dtype=torch.bool)

    joined = insert_image_tokens(words, image.flatten(0, 1), marks)

    assert torch.equal(joined[0, 1:3], image[0])
    assert torch.equal(joined[1, [3, 5]], image[1])
    assert joined[~marks].abs().sum() == 0


@pytest.mark.parametrize("images", [0, 2, 3])
def test_a_wrong_number_of_image_tokens_is_an_error(images: int) -> None:
    """The message has both numbers."""
    marks = torch.tensor([[True] * 5])
    with pytest.raises(ValueError, match=rf"5 tokens .* {images * 4} image tokens"):
        insert_image_tokens(torch.zeros(1, 5, 3), torch.zeros(images * 4, 3), marks)


def test_without_images_the_projector_is_in_the_graph() -> None:
    """Text alone can be trained on where only the projector is trainable; its gradient is zero."""
    projector = torch.nn.Linear(2, 3)
    joined = insert_image_tokens(
        torch.ones(1, 4, 3), projector(torch.zeros(0, 2)), torch.zeros(1, 4) > 0
    )
    joined.sum().backward()
    assert torch.equal(joined, torch.ones(1, 4, 3))
    assert projector.weight.grad is not None
    assert projector.weight.grad.abs().sum() == 0


POSITIONS, HIDDEN, WORDS = 13, 5, 11


def chunked_and_plain(
    head: nn.Linear, dtype: torch.dtype = torch.float32, scale: float = 3.0
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return loss and gradients of hidden states and head, in chunks and at once."""
    torch.manual_seed(7)
    states = torch.randn(POSITIONS, HIDDEN)
    targets = torch.randint(WORDS, (POSITIONS,))

    def to_logits(hidden: Tensor) -> Tensor:
        return 2 * torch.tanh(head(hidden).float() / 2)

    results = []
    for chunked in (True, False):
        hidden = states.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = (
                chunked_cross_entropy(
                    to_logits, hidden, targets, vocabulary=WORDS, head=[*head.parameters()]
                )
                if chunked
                else cross_entropy(to_logits(hidden), targets, reduction="sum")
            )
        trainable = [weight for weight in head.parameters() if weight.requires_grad]
        results.append((loss.detach(), *torch.autograd.grad(loss / scale, (hidden, *trainable))))
    return results[0], results[1]


@pytest.mark.parametrize("positions_at_once", [1, 4, 13, 50])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_do_not_change_the_loss(
    positions_at_once: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, and gradients of the hidden states, the head and its bias, whatever the size of a chunk."""
    monkeypatch.setattr(llava, "MAX_LOGIT_BYTES", 4 * WORDS * positions_at_once)
    torch.manual_seed(3)
    chunked, plain = chunked_and_plain(nn.Linear(HIDDEN, WORDS, bias=bias))
    assert len(chunked) == 3 + bias
    for actual, expected in zip(chunked, plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in stage 1, only the hidden states have one."""
    monkeypatch.setattr(llava, "MAX_LOGIT_BYTES", 4 * WORDS * 4)
    torch.manual_seed(3)
    head = nn.Linear(HIDDEN, WORDS).requires_grad_(False)
    chunked, plain = chunked_and_plain(head)
    assert len(chunked) == 2
    torch.testing.assert_close(chunked[1], plain[1], rtol=1e-5, atol=1e-6)
    assert head.weight.grad is None


def test_chunks_are_as_exact_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, with several chunks that share the head's cast weights."""
    monkeypatch.setattr(llava, "MAX_LOGIT_BYTES", 4 * WORDS * 4)
    torch.manual_seed(3)
    chunked, plain = chunked_and_plain(nn.Linear(HIDDEN, WORDS), torch.bfloat16)
    for actual, expected in zip(chunked, plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
    assert all(bool(tensor.abs().sum() > 0) for tensor in chunked)


def test_without_gradients_the_loss_is_the_sum() -> None:
    """Validation stores no gradients."""
    head = nn.Linear(HIDDEN, WORDS)
    hidden, targets = torch.randn(POSITIONS, HIDDEN), torch.randint(WORDS, (POSITIONS,))
    with torch.no_grad():
        loss = chunked_cross_entropy(
            head, hidden, targets, vocabulary=WORDS, head=[*head.parameters()]
        )
        expected = cross_entropy(head(hidden), targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


LARGE_HEAD = """
import resource, sys, torch
from torch import nn
from caldera.model.llava import chunked_cross_entropy
torch.set_num_threads(1)
head = nn.Linear(8, 262_144, bias=False)
hidden = torch.randn(int(sys.argv[1]), 8, requires_grad=True)
targets = torch.zeros(len(hidden), dtype=torch.long)
chunked_cross_entropy(head, hidden, targets, vocabulary=262_144, head=[head.weight]).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_supervised_tokens() -> None:
    """Eight times as many tokens of a vocabulary of 262,144 take as much; in one chunk they would take 4 GB more."""
    peaks = []
    for count in (512, 4096):
        command = [sys.executable, "-c", LARGE_HEAD, str(count)]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(process.stdout))  # kilobytes
    assert peaks[1] - peaks[0] < 300_000
