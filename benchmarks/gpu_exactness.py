"""Exactness checks of `benchmarks/gpu_check.py`: a device against the CPU, and fast ways against plain ones on it.

Every check yields a `Row` for each number that it compares.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any

import torch
from gpu_models import SIZES, as_transformers, random_model
from serve import QUESTION, conversation, noise
from serve_models import Size
from torch import Tensor
from train_workloads import WORKLOADS, Workload, samples_of

from caldera.batches.image_sources import DecodedImages
from caldera.batches.packing import Batch, BatchBuilder, PackedRow
from caldera.devices import DeviceConfig, is_cpu
from caldera.errors import UsageError
from caldera.inference.choose_decoder import choose_decoder
from caldera.inference.detokenizer import TokenIds
from caldera.inference.engine import Engine, EngineConfig, Request, SamplingParams
from caldera.inference.prompts import Prompt
from caldera.model.batch_layout import run_language_model, set_attention
from caldera.model.bundle import LlavaBundle
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.step import training_step

CPU = torch.device("cpu")
EXACT = 1e-4
"""Relative difference of fp32 results whose sums have another order."""

ROUNDED = {torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative difference of gradients with rounded products from those in fp32."""

_LOSS_SCALE = 256.0
_TOKENS = 32
"""Length of an answer."""


@dataclass(frozen=True)
class Row:
    """A number that was compared with its limit, or measured."""

    name: str
    value: str
    limit: str = ""
    passed: bool | None = None
    """None for a measurement."""


@dataclass(frozen=True)
class CheckConfig:
    """Device of a check, and the size of its models."""

    device: torch.device
    size: Size

    @property
    def steps_of_speed(self) -> int:
        """Steps that a measurement takes: few on a CPU, where only the script itself is tried."""
        return 1 if is_cpu(self.device) else 8


Check = Callable[[CheckConfig], Iterator[Row]]


def below(name: str, value: float, limit: float) -> Row:
    """Return the row of a difference."""
    return Row(name, f"{value:.1e}", f"<= {limit:.0e}", value <= limit)


def equal(name: str, actual: object, expected: object) -> Row:
    """Return the row of a comparison that has no tolerance."""
    if actual == expected:
        return Row(name, "equal", "equal", passed=True)
    return Row(name, f"{actual} instead of {expected}"[:200], "equal", passed=False)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of a difference relative to the expected norm; infinite if something is not finite."""
    actual, expected = actual.float().cpu(), expected.float().cpu()
    value = float((actual - expected).norm() / expected.norm())
    return inf if isnan(value) else value


def name_of(dtype: torch.dtype) -> str:
    """Return a precision's name."""
    return str(dtype).removeprefix("torch.")


def batches_for(assistant: LlavaBundle, workload: Workload, share: bool) -> list[Batch]:
    """Return the micro-batches of one step of a workload."""
    with tempfile.TemporaryDirectory() as scratch:
        samples = samples_of(workload, assistant, Path(scratch), assistant.processor.side)
        images = DecodedImages(assistant.processor)
        builder = BatchBuilder(load_images=images, share_prefixes=share, max_tokens=2048)
        return builder.build(samples[: workload.batch])


def gradients(
    assistant: LlavaBundle,
    workload: Workload,
    compute: DeviceConfig,
    *,
    checkpointing: bool = False,
) -> tuple[float, Tensor]:
    """Return the loss of a step, and the gradient of all trained weights, on the CPU."""
    model = copy.deepcopy(assistant).model.to(compute.device)
    set_trainable(model, workload.stage.trainable)
    model.choose_batch_layout(compute.attention)
    model.set_gradient_checkpointing(checkpointing)
    model.train()
    batches = batches_for(assistant, workload, share=True)
    divisor = sum(batch.num_supervised_tokens for batch in batches)
    scale = _LOSS_SCALE if compute.dtype == torch.float16 else 1.0
    total = 0.0
    for batch in batches:
        with compute.autocast():
            loss = model(batch.to(compute.device)).total
        (loss * scale / divisor).backward()
        total += float(loss.detach())
    parts = [
        weight.grad.flatten() / scale for weight in model.parameters() if weight.grad is not None
    ]
    return total / divisor, torch.cat(parts).float().cpu()


def check_steps(config: CheckConfig) -> Iterator[Row]:
    """Compare the loss and the gradients of both stages with those of the CPU in fp32."""
    assistant = random_model(config.size, CPU, torch.float32)
    for name in ("captions5", "instruct"):
        workload = WORKLOADS[name]
        expected_loss, expected = gradients(assistant, workload, DeviceConfig(CPU, torch.float32))
        for dtype in (torch.float32, torch.bfloat16):
            loss, actual = gradients(assistant, workload, DeviceConfig(config.device, dtype))
            limit = ROUNDED.get(dtype, EXACT)
            stage = f"{workload.stage.name}, {name_of(dtype)}"
            yield below(f"{stage}: loss", abs(loss / expected_loss - 1), limit / 10)
            yield below(f"{stage}: gradients", distance(actual, expected), limit)


def check_float16(config: CheckConfig) -> Iterator[Row]:
    """Compare a step with a scaled loss with fp32, and skip one whose gradients overflow."""
    assistant = random_model(config.size, CPU, torch.float32)
    workload, compute = WORKLOADS["instruct"], DeviceConfig(config.device, torch.float16)
    expected_loss, expected = gradients(assistant, workload, DeviceConfig(CPU, torch.float32))
    loss, actual = gradients(assistant, workload, compute)
    limit = ROUNDED[torch.float16]
    yield below("finetune, float16: loss", abs(loss / expected_loss - 1), limit / 10)
    yield below("finetune, float16: gradients", distance(actual, expected), limit)

    model = assistant.model.to(config.device)
    set_trainable(model, workload.stage.trainable)
    model.choose_batch_layout(compute.attention)
    optimizer = build_optimizer(model, workload.stage)
    scaler = torch.amp.GradScaler(config.device.type, init_scale=2.0**40)
    before = [weight.detach().clone() for weight in model.parameters()]
    report = training_step(
        model, batches_for(assistant, workload, share=True), optimizer, max_grad_norm=1.0,
        compute=compute, scaler=scaler,
    )  # fmt: skip
    unchanged = all(map(torch.equal, before, model.parameters()))
    yield equal("a step that overflows is skipped", report.skipped and unchanged, True)
    yield equal("and halves the scale", scaler.get_scale(), 2.0**39)


def check_attention(config: CheckConfig) -> Iterator[Row]:
    """Compare the packed layout of the device (FlexAttention on CUDA) with a dense mask, forward and backward."""
    language = random_model(config.size, config.device, torch.float32).model.language
    expected_layout = "packed" if is_cpu(config.device) else "flex"
    assistant = random_model(config.size, config.device, torch.float32)
    assistant.model.choose_batch_layout("sdpa")
    layout = assistant.model.batch_layout
    yield equal("layout of packed rows", layout, expected_layout)
    # Other numbers of tokens each time, as in training.
    for rows in (
        (PackedRow(0, 150, (40, 7)), PackedRow(197, 0, (33,))),
        (PackedRow(0, 3, (5,)), PackedRow(8, 70, (130, 1, 1)), PackedRow(210, 9, (300,))),
        (PackedRow(0, 577, (20, 40, 60, 80, 100)),),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            results = [
                _hidden_states(language, rows, name, DeviceConfig(config.device, dtype))
                for name in (layout, "masked")
            ]
            limit = ROUNDED.get(dtype, EXACT)
            label = f"{sum(row.length for row in rows)} tokens, {name_of(dtype)}"
            for part, actual, expected in zip(("states", "gradients"), *results, strict=True):
                yield below(f"{label}: {part}", distance(actual, expected), limit)


def _hidden_states(
    language: Any,  # noqa: ANN401 - a model of transformers
    rows: Sequence[PackedRow],
    layout: Any,  # noqa: ANN401 - a name
    compute: DeviceConfig,
) -> tuple[Tensor, Tensor]:
    """Return the hidden states of random tokens in a layout, and the gradient of the input and all weights."""
    set_attention(language, layout, "sdpa")
    language.train()
    language.zero_grad(set_to_none=True)
    positions = torch.cat([row.positions for row in rows])
    generator = torch.Generator().manual_seed(1)
    shape = len(positions), language.config.hidden_size
    embedded = torch.randn(shape, generator=generator).to(compute.device).requires_grad_()
    weights = torch.randn(shape, generator=generator).to(compute.device)
    with compute.autocast():
        states = run_language_model(language, embedded, positions.to(compute.device), rows, layout)
    (states.float() * weights).sum().backward()
    inputs = [embedded, *language.base_model.parameters()]
    grads = [tensor.grad.flatten() for tensor in inputs if tensor.grad is not None]
    return states.detach(), torch.cat(grads)


def check_checkpointing(config: CheckConfig) -> Iterator[Row]:
    """Compare a step with gradient checkpointing with one without: the same numbers, less memory."""
    assistant = random_model(config.size, CPU, torch.float32)
    compute = DeviceConfig(config.device, torch.float32)
    results, peaks = [], []
    for enabled in (False, True):
        if not is_cpu(config.device):
            torch.cuda.reset_peak_memory_stats(config.device)
        results.append(gradients(assistant, WORKLOADS["instruct"], compute, checkpointing=enabled))
        if not is_cpu(config.device):
            peaks.append(torch.cuda.max_memory_allocated(config.device))
    (plain_loss, plain), (loss, actual) = results
    yield below("loss", abs(loss / plain_loss - 1), EXACT / 10)
    yield below("gradients", distance(actual, plain), EXACT)
    if peaks:
        ratio = peaks[1] / peaks[0]
        yield Row("peak memory relative to none", f"{ratio:.2f}", "< 1", ratio < 1)


def check_engine(config: CheckConfig) -> Iterator[Row]:
    """Compare answers in fp32 token by token: with transformers, with a cached prefix, and many at a time."""
    assistant = random_model(config.size, config.device, torch.float32)
    images = [noise(number, config.size.side) for number in range(6)]
    with Engine(assistant, EngineConfig(slots=4)) as engine:
        yield Row("decoder", engine.description)
        prompts = [
            engine.build_prompt(
                conversation(f"{number}? {QUESTION}"), [engine.prepare_image(image)]
            )
            for number, image in enumerate(images)
        ]
        alone = [_answer(engine, prompt) for prompt in prompts]
        again = [_answer(engine, prompt) for prompt in prompts]
        yield equal("prefix cache", again, alone)
        yield equal("prefixes were cached", engine.stats().cache_hits >= len(prompts), True)
        sampling = SamplingParams(max_new_tokens=_TOKENS, ignore_template_stop=True)
        streams = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
        concurrent = [[token for delta in stream for token in delta.tokens] for stream in streams]
        yield equal("continuous batching of 6 requests in 4 slots", concurrent, alone)
    model = as_transformers(random_model(config.size, config.device, torch.float32))
    banned = TokenIds(assistant).banned
    expected = [_transformers_answer(model, assistant, prompt, banned) for prompt in prompts]
    yield equal("transformers", alone, expected)


def _answer(engine: Engine, prompt: Prompt) -> list[int]:
    """Return the tokens of a greedy answer."""
    sampling = SamplingParams(max_new_tokens=_TOKENS, ignore_template_stop=True)
    stream = engine.submit(Request(prompt, sampling))
    return [token for delta in stream for token in delta.tokens]


def _transformers_answer(
    model: Any,  # noqa: ANN401 - generate is untyped
    assistant: LlavaBundle,
    prompt: Prompt,
    banned: Sequence[int],
) -> list[int]:
    """Return the tokens of transformers' greedy answer, without the end token."""
    ids = torch.tensor([prompt.ids], device=model.device)
    pixels = torch.cat([image.views for image in prompt.images]).to(model.device, model.dtype)
    end = assistant.tokenizer.eos_token_id
    generated = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=_TOKENS,
        do_sample=False, suppress_tokens=[*banned], eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    tokens = generated[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(end)] if end in tokens else tokens


def check_int8(config: CheckConfig) -> Iterator[Row]:
    """Check that int8 is rejected on a GPU in one line, and near fp32 on a CPU."""
    language = random_model(config.size, config.device, torch.float32).model.language
    try:
        decoder = choose_decoder(language, 2, quantization="int8")
    except UsageError as error:
        expected = "int8 is not possible here: the model is on"
        yield equal("int8", str(error)[: len(expected)], expected)
        return
    yield equal("int8 is for CPUs", is_cpu(config.device), True)
    embedded = language.get_input_embeddings()(torch.arange(1, 90))
    with torch.inference_mode():
        actual = decoder.prefill(0, embedded)
        expected_logits = language(inputs_embeds=embedded.unsqueeze(0)).logits[0, -1]
    yield below("int8: logits", distance(actual, expected_logits), 0.1)


SMALL = {"full": SIZES["26m"], "tiny": SIZES["tiny"]}
"""Size of the models that are compared, by scale."""
