"""Speed of TRL's SFTTrainer on a workload of `benchmarks/train.py`.

It is used as intended: its own loop and collator, which tokenizes and prepares images at every step, random batches
padded to the longest sample, loss on the assistant's turns, bf16 autocast over fp32 weights. Gradient checkpointing, on
by default, is off, as on the other sides; it would cost TRL a second forward pass.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from transformers import (
    LlavaForConditionalGeneration,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from caldera.conversation import Conversation, ImageRef
from caldera.templates.jinja import chat_template
from caldera.templates.registry import find_template

_WARMUP_STEPS = 2
"""Steps before the measurement."""


class _StepTimer(TrainerCallback):
    """Records the end of each step, and the number of unpadded tokens of each batch."""

    def __init__(self) -> None:
        self.end_times: list[float] = []
        self.cpu_times: list[float] = []
        self.tokens: list[int] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Record wall time and CPU time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.end_times.append(time.perf_counter())
        self.cpu_times.append(time.process_time())


def run_trl(  # noqa: PLR0913 - settings by name
    model: LlavaForConditionalGeneration,
    processor: ProcessorMixin,
    dialogues: Sequence[Conversation],
    images: Path,
    *,
    template: str,
    trainable: Sequence[str],
    batch: int,
    steps: int,
) -> tuple[float, float, float]:
    """Run steps, and return samples and unpadded tokens per second, and the number of cores used.

    Args:
        model: The model in fp32, on its device.
        processor: The model's processor; its chat template is replaced.
        dialogues: Conversations to train on.
        images: Folder that their image paths are relative to.
        template: Name of the conversation template.
        trainable: Parts whose weights are trained.
        batch: Samples per step.
        steps: Number of measured steps.
    """
    parts = {"projector": model.model.multi_modal_projector, "language": model.model.language_model}
    model.requires_grad_(False)
    for part in trainable:
        parts[part].requires_grad_(True)
    processor.chat_template = _with_generation_tags(
        chat_template(find_template(template), starts=True)
    )
    timer = _StepTimer()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(images / "trl"), per_device_train_batch_size=batch, max_steps=_WARMUP_STEPS + steps,
            learning_rate=1e-5, lr_scheduler_type="constant", max_grad_norm=1.0, optim="adamw_torch_fused", bf16=True,
            use_cpu=model.device.type == "cpu", gradient_checkpointing=False, assistant_only_loss=True,
            max_length=None, seed=3,
            report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=_dataset(dialogues, images),
        processing_class=processor,
        callbacks=[timer],
    )  # fmt: skip
    trainer.data_collator = _count_tokens(trainer.data_collator, timer.tokens)
    trainer.train()
    seconds = timer.end_times[-1] - timer.end_times[_WARMUP_STEPS - 1]
    tokens = sum(timer.tokens[_WARMUP_STEPS : _WARMUP_STEPS + steps])
    cores = (timer.cpu_times[-1] - timer.cpu_times[_WARMUP_STEPS - 1]) / seconds
    return steps * batch / seconds, tokens / seconds, cores


def _count_tokens(collate: Callable[[Any], Any], tokens: list[int]) -> Callable[[Any], Any]:
    """Wrap a collator to record the number of unpadded tokens of each batch."""

    def collate_and_count(examples: Any) -> Any:  # noqa: ANN401 - TRL's types
        batch = collate(examples)
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    return collate_and_count


def _with_generation_tags(template: str) -> str:
    """Return a template that begins with the start token and has generation tags around the assistant's text.

    TRL adds no special tokens of the tokenizer; with these, ids and labels are those that caldera trains on.
    """
    condition = "{% elif message['role'] == 'assistant' %}"
    before, answer = template.split(condition)
    start = answer.index("{% if message['content'] is string %}")
    prefix, rest = answer[:start], answer[start:]
    supervised, end = rest.split("{% else %}{{ raise_exception")
    tagged = f"{prefix}{{% generation %}}{supervised}{{% endgeneration %}}"
    return f"{{{{ bos_token }}}}{before}{condition}{tagged}{{% else %}}{{{{ raise_exception{end}"


def _dataset(dialogues: Sequence[Conversation], images: Path) -> Dataset:
    """Return conversations in TRL's format."""
    rows = []
    for conversation in dialogues:
        messages = []
        for turn in conversation.turns:
            content = [
                {"type": "image", "text": None}
                if isinstance(part, ImageRef)
                else {"type": "text", "text": part.strip()}
                for part in turn.parts
            ]
            messages.append({"role": turn.role, "content": content})
        paths = [str(images / path) for path in conversation.images]
        rows.append({"messages": messages, "images": paths})
    return Dataset.from_list(rows).cast_column("images", [Image()])
