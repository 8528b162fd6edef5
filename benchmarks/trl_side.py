"""TRL's SFTTrainer on a workload of `benchmarks/train.py`: a model folder and conversations in, its speed out.

It trains as its users do: its own loop and collator, which tokenizes and prepares images at every step, random
batches padded to their longest, loss on the assistant's words, bf16 autocast over fp32 weights. Gradient checkpointing,
which it has on by default, is off here, as the other sides do without; it would cost TRL another pass forward.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from caldera.conversation import Conversation, ImageRef
from caldera.templates.jinja import chat_template
from caldera.templates.template import find_template

_WARM = 2
"""Steps before the clock starts."""


class _Clock(TrainerCallback):
    """Notes when each step ended, and how many real tokens the batches so far had."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.tokens: list[int] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Note the time, and the processor's."""
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())


def run_trl(
    folder: Path,
    told: Sequence[Conversation],
    images: Path,
    *,
    template: str,
    trains: Sequence[str],
    batch: int,
    steps: int,
) -> tuple[float, float, float]:
    """Take steps, and return samples and real tokens a second, and the cores that it had.

    Args:
        folder: Model folder.
        told: Conversations.
        images: Where their images' paths start from.
        template: How conversations are written.
        trains: Parts whose weights move.
        batch: Samples of a step.
        steps: How many steps are timed.
    """
    peer = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    parts = {"projector": peer.model.multi_modal_projector, "language": peer.model.language_model}
    peer.requires_grad_(False)
    for part in trains:
        parts[part].requires_grad_(True)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = _with_marks(chat_template(find_template(template), starts=True))
    clock = _Clock()
    trainer = SFTTrainer(
        model=peer,
        args=SFTConfig(
            output_dir=str(images / "trl"), per_device_train_batch_size=batch, max_steps=_WARM + steps,
            learning_rate=1e-5, lr_scheduler_type="constant", max_grad_norm=1.0, optim="adamw_torch_fused", bf16=True,
            use_cpu=True, gradient_checkpointing=False, assistant_only_loss=True, max_length=None, seed=3,
            report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=_dataset(told, images),
        processing_class=processor,
        callbacks=[clock],
    )  # fmt: skip
    trainer.data_collator = _counting(trainer.data_collator, clock.tokens)
    trainer.train()
    seconds = clock.ends[-1] - clock.ends[_WARM - 1]
    tokens = sum(clock.tokens[_WARM : _WARM + steps])
    cores = (clock.processor[-1] - clock.processor[_WARM - 1]) / seconds
    return steps * batch / seconds, tokens / seconds, cores


def _counting(collate: Callable[[Any], Any], tokens: list[int]) -> Callable[[Any], Any]:
    """Let a collator note the real tokens of each batch."""

    def counted(examples: Any) -> Any:  # noqa: ANN401 - as TRL has it
        made = collate(examples)
        tokens.append(int(made["attention_mask"].sum()))
        return made

    return counted


def _with_marks(template: str) -> str:
    """Return a template that begins with the start mark, and tells TRL where the assistant's words are.

    TRL adds no marks of the tokenizer's own; with these, ids and labels are those that caldera trains on.
    """
    before, answer = template.split("{% elif message['role'] == 'assistant' %}")
    begin = answer.index("{% if message['content'] is string %}")
    lead, rest = answer[:begin], answer[begin:]
    learned, end = rest.split("{% else %}{{ raise_exception")
    marked = f"{lead}{{% generation %}}{learned}{{% endgeneration %}}"
    turn = "{% elif message['role'] == 'assistant' %}"
    return f"{{{{ bos_token }}}}{before}{turn}{marked}{{% else %}}{{{{ raise_exception{end}"


def _dataset(told: Sequence[Conversation], images: Path) -> Dataset:
    """Write conversations as TRL takes them."""
    rows = []
    for conversation in told:
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
