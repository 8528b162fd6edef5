"""Sampling parameters are checked, and top-p and top-k restrict the tokens."""

import pytest
import torch

from caldera.errors import UsageError
from caldera.inference.sampling import SamplingParams, sample_tokens


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"temperature": 99},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 1 << 63},
        {"max_new_tokens": 0},
        {"stop": ("",)},
        {"logprobs": True, "top_logprobs": 21},
        {"top_logprobs": 2},
    ],
)
def test_settings_out_of_range_are_rejected(setting: dict[str, float]) -> None:
    """The message names the setting and its range."""
    with pytest.raises(UsageError, match=list(setting)[-1]):
        SamplingParams(**setting)  # type: ignore[arg-type]


def test_top_p_samples_only_the_most_likely() -> None:
    """With a small top_p only the most likely token is sampled; with a larger one others are, too."""
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(500, 1)
    generator = torch.Generator().manual_seed(0)

    def sampled(top_p: float) -> torch.Tensor:
        return sample_tokens(logits, SamplingParams(temperature=1, top_p=top_p), generator)

    assert set(sampled(0.4).tolist()) == {0}
    assert set(sampled(0.6).tolist()) == {0, 1}
    frequencies = sampled(1.0).bincount() / 500
    assert frequencies.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.07)


def test_top_k_samples_only_k_tokens() -> None:
    """By their probabilities among themselves; top_p applies to these."""
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.1]])).repeat(500, 1)
    generator = torch.Generator().manual_seed(0)
    tokens = sample_tokens(logits, SamplingParams(temperature=1, top_k=2), generator)
    frequencies = tokens.bincount(minlength=4) / 500
    assert frequencies.tolist() == pytest.approx([0, 0.625, 0.375, 0], abs=0.07)
    narrow = SamplingParams(temperature=1, top_k=2, top_p=0.6)
    assert set(sample_tokens(logits, narrow, generator).tolist()) == {1}
