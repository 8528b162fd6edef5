"""Shared fixtures: no network except loopback, third-party data if present, and tiny random models."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from pytest_socket import disable_socket, enable_socket, socket_allow_hosts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from caldera.files import hub_errors
from caldera.formats.assemble import assemble
from caldera.model.bundle import LlavaBundle
from caldera.progress import Advance, NoProgress, Progress
from tests.hub_server import HubServer, use_hub
from tests.teacher_server import Script, TeacherServer

THIRD_PARTY = Path(
    os.environ.get("CALDERA_THIRD_PARTY", Path(__file__).parents[2] / "shared" / "data")
)


def pytest_configure() -> None:
    """Use at most two threads, silence transformers, and draw the same examples in every run.

    `--hypothesis-profile random` draws others.
    """
    shared = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("fixed", shared, derandomize=True)
    settings.register_profile("random", shared)
    settings.load_profile("fixed")
    torch.set_num_threads(min(2, torch.get_num_threads()))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _no_network() -> None:
    """Block every network connection."""
    disable_socket(allow_unix_socket=True)


@pytest.fixture
def loopback(_no_network: None) -> None:
    """Allow connections to this machine only."""
    enable_socket()
    socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)


@pytest.fixture
def serve(loopback: None) -> Iterator[Callable[[Script], TeacherServer]]:
    """Return a function that starts LLM servers; they are closed when the test ends."""
    started: list[TeacherServer] = []

    def start(script: Script, *, keep: bool = True) -> TeacherServer:
        started.append(TeacherServer(script, keep=keep))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def hub(loopback: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Start a Hub; the cache is `tmp_path / "hub"`, no token is set, and pauses between attempts are short."""
    monkeypatch.setattr(hub_errors, "FIRST_PAUSE_SECONDS", 0.001)
    with HubServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "hub")
        yield server


@pytest.fixture(scope="session")
def third_party() -> Path:
    """Return the folder of third-party data; skip the test if there is none."""
    if not THIRD_PARTY.is_dir():
        pytest.skip(f"no third-party data at {THIRD_PARTY}; set CALDERA_THIRD_PARTY")
    return THIRD_PARTY


WORDS = (
    "a the dog cat bird is are on in left right yes no two one three what where how many there do you see image "
    "shows describe meadow beach USER: ASSISTANT: A chat between curious user and an artificial intelligence "
    "assistant. gives helpful, detailed, polite answers to user's questions. Picture B: C:"
)


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a random CLIP vision tower: 3 x 3 patches of 2 pixels, hidden size 10."""
    folder = tmp_path_factory.mktemp("towers") / "vision"
    torch.manual_seed(1)
    shape = CLIPVisionConfig(
        hidden_size=10,
        intermediate_size=14,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=6,
        patch_size=2,
        projection_dim=7,
    )
    CLIPVisionModel(shape).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 6}, crop_size={"height": 6, "width": 6}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with LLaMA's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=337,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([WORDS] * 3, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def language_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Create a random LLaMA of hidden size 12."""
    folder = tmp_path_factory.mktemp("towers") / "language"
    torch.manual_seed(2)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        intermediate_size=22,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Create a random GPT-2 of hidden size 12, with dropout and a learned embedding for each of 281 positions."""
    folder = tmp_path_factory.mktemp("towers") / "gpt2"
    torch.manual_seed(4)
    shape = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=12,
        n_layer=2,
        n_head=2,
        n_positions=281,
        bos_token_id=1,
        eos_token_id=2,
    )
    GPT2LMHeadModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def assistant(vision_folder: Path, language_folder: Path) -> LlavaBundle:
    """Assemble the two random towers and a new projector, in fp32."""
    return assemble(vision_folder, language_folder, seed=3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Create a folder of seven small images of different sizes, `0.png` to `6.png`."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(7):
        shape = (5 + 2 * number, 19 - 2 * number, 3)
        values = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


class _InterruptAt(NoProgress):
    """Progress that raises KeyboardInterrupt at a training step."""

    def __init__(self, step: int) -> None:
        self._step = step

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Count the steps of a job, and interrupt training."""
        num_done = 0

        def advance(steps: int = 1, *, detail: str = "") -> None:
            nonlocal num_done
            num_done += steps
            if name.startswith("training") and num_done == self._step:
                raise KeyboardInterrupt

        yield advance


@pytest.fixture
def stops_at() -> Callable[[int], Progress]:
    """Return a class of progress that raises KeyboardInterrupt at a training step."""
    return _InterruptAt
