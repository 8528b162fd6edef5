"""A training run has the losses and weights of LLaVA's recipe written as a plain loop in PyTorch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import get_cosine_schedule_with_warmup

from caldera.batches.image_sources import DecodedImages
from caldera.batches.packing import group_by_images
from caldera.batches.sampler import BatchLimit, StepSampler
from caldera.batches.samples import Sample
from caldera.formats.assemble import assemble
from caldera.formats.tokenizer import added_token_ids
from caldera.model.bundle import LlavaBundle
from caldera.templates.encoding import IGNORE_INDEX
from caldera.training.hyperparameters import FINETUNE, PRETRAIN, Stage
from caldera.training.metrics_log import read_metrics
from tests.laying import padded
from tests.training.jobs import build_samples, dialogues, make_job

STAGES = {
    "pretrain": replace(
        PRETRAIN, template="vicuna_v1", learning_rate=1e-2, max_grad_norm=None, epochs=2
    ),
    "finetune": replace(
        FINETUNE, learning_rate=5e-3, projector_learning_rate=1e-2, weight_decay=0.1, epochs=2
    ),
}


def plain_loss(assistant: LlavaBundle, samples: list[Sample]) -> Tensor:
    """Return the mean loss of the batch of one device: padded rows, and logits of the words that LLaVA's table has."""
    model, rows = assistant.model, padded(samples)
    images = DecodedImages(assistant.processor)(
        [path for sample in samples for path in sample.images],
        layouts := [layout for sample in samples for layout in sample.layouts],
    )
    embedded = model.embed(rows.ids, images, layouts)
    logits = model.language(inputs_embeds=embedded, attention_mask=rows.mask).logits
    words = logits[:, :-1, : min(added_token_ids(assistant.tokenizer, logits.shape[-1]))]
    return cross_entropy(
        words.flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )


def plain_run(assistant: LlavaBundle, samples: list[Sample], stage: Stage) -> list[float]:
    """Train as LLaVA's trainer does on `batch_size // loss_batch_size` devices; return the loss of each step."""
    model = assistant.model
    groups = []
    for part, rate in (("projector", stage.projector_learning_rate), ("language", None)):
        module = getattr(model, part).requires_grad_(part in stage.trainable)
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        matrices = [weight for weight in weights if weight.ndim > 1]
        others = [weight for weight in weights if weight.ndim == 1]
        for parameters, decay in ((matrices, stage.weight_decay), (others, 0.0)):
            lr = rate or stage.learning_rate
            groups.append({"params": parameters, "weight_decay": decay, "lr": lr})
    model.vision.requires_grad_(False)
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    sampler = StepSampler(
        lengths=[sample.length for sample in samples],
        groups=group_by_images(samples),
        limit=BatchLimit(samples=stage.batch_size),
        epochs=stage.epochs,
        seed=stage.seed,
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, 3, sampler.num_steps)
    losses = []
    for indices in sampler.steps():
        devices = [indices[start : start + 2] for start in range(0, len(indices), 2)]
        loss = 0.0
        for device in devices:
            mean = plain_loss(assistant, [samples[index] for index in device]) / len(devices)
            mean.backward()
            loss += float(mean.detach())
        if stage.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), stage.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss)
    return losses


@pytest.mark.parametrize("name", STAGES)
def test_ten_steps_have_the_losses_and_weights_of_a_plain_loop(
    name: str, vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Both stages, with four devices of two records each and a warm-up of three steps: to 1e-5, in fp32."""
    stage = replace(
        STAGES[name], batch_size=8, loss_batch_size=2, warmup_ratio=0.25, validation_size=0
    )
    plain = assemble(vision_folder, language_folder, seed=3)
    samples = build_samples(plain, dialogues(40), photos)

    expected = plain_run(plain, samples, stage)
    start = assemble(vision_folder, language_folder, seed=3)
    trained, _ = make_job(start, photos, tmp_path / "run", stage).run()

    events = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [event["loss"] for event in events if "loss" in event]
    assert len(losses) == len(expected) == 10
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0] - 0.05
    plain.model.exclude_from_loss(trained.model.excluded_ids.tolist())
    plain.model.reset_excluded_rows()
    weights = plain.model.state_dict()
    for key, weight in trained.model.state_dict().items():
        torch.testing.assert_close(weight, weights[key], rtol=1e-4, atol=2e-5, msg=key)
