"""Process that runs LLaVA's own code for a comparison, in a Python that has its package `llava`.

It imports nothing of caldera. Arguments: a folder in LLaVA's own layout. Each line of the input is a case as JSON; for
each, the outputs of all stages are written to a file of arrays, and a line to the output.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM, LlavaMistralForCausalLM
from PIL import Image
from transformers import AutoTokenizer


class Original:
    """A folder loaded by LLaVA's own code, in fp32 on the CPU."""

    def __init__(self, folder: str) -> None:
        """Load a folder as LLaVA's `load_pretrained_model` does, which has no other precision than fp16."""
        is_mistral = (
            json.loads((Path(folder) / "config.json").read_text())["model_type"] == "llava_mistral"
        )
        options = {} if is_mistral else {"use_fast": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model_class = LlavaMistralForCausalLM if is_mistral else LlavaLlamaForCausalLM
        self.model, report = model_class.from_pretrained(
            folder, low_cpu_mem_usage=True, torch_dtype=torch.float32, output_loading_info=True
        )
        if report["missing_keys"] or report["unexpected_keys"]:
            raise ValueError(f"weights do not fit: {report}")
        self.model.resize_token_embeddings(len(self.tokenizer))
        tower = self.model.get_vision_tower()
        if not tower.is_loaded:
            tower.load_model()
        self.processor = tower.image_processor
        self.model.float().eval()

    def prompt(self, mode: str, question: str) -> str:
        """Return the prompt of a question about an image; of stage 1's mode `plain`, the image alone."""
        if mode == "plain":
            return "<image>"
        conversation = conv_templates[mode].copy()
        conversation.append_message(conversation.roles[0], f"<image>\n{question}")
        conversation.append_message(conversation.roles[1], None)
        return str(conversation.get_prompt())

    @torch.no_grad()
    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs of all stages, by their names in caldera's `StageOutputs`."""
        image = Image.open(case["image"]).convert("RGB")
        pixels = process_images([image], self.processor, self.model.config)
        prompt = self.prompt(case["mode"], case["question"])
        ids = tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        inputs = {"images": pixels, "image_sizes": [image.size]}
        features: list[torch.Tensor] = []
        projector = self.model.get_model().mm_projector
        hook = projector.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        embedded = self.model.prepare_inputs_labels_for_multimodal(
            ids[None], None, None, None, None, **inputs
        )[4]  # (1, tokens, width)
        hook.remove()
        start = ids.tolist().index(IMAGE_TOKEN_INDEX)
        end = embedded.shape[1] - (len(ids) - start - 1)
        image_ids = ids.new_full((end - start,), IMAGE_TOKEN_INDEX)
        answer = self.model.generate(
            ids[None], **inputs, do_sample=False, max_new_tokens=case["new_tokens"]
        )[0].tolist()
        if answer[:1] == [self.tokenizer.bos_token_id]:
            answer = answer[1:]  # transformers 4.37 puts it before an answer to embeddings
        return {
            "pixels": pixels.reshape(-1, *pixels.shape[-3:]),
            "features": features[0],
            "image_tokens": embedded[0, start:end],
            "ids": torch.cat([ids[:start], image_ids, ids[start + 1 :]]),
            "logits": self.model(inputs_embeds=embedded).logits[0],
            "answer": answer,
        }


def main(folder: str) -> None:
    """Load a folder, then run the cases of the input."""
    output, sys.stdout = sys.stdout, sys.stderr  # LLaVA's code prints
    original = Original(folder)
    output.write("loaded\n")
    output.flush()
    for line in sys.stdin:
        case = json.loads(line)
        arrays: dict[str, Any] = original.run(case)
        np.savez(case["out"], **arrays)
        output.write("done\n")
        output.flush()


if __name__ == "__main__":
    main(sys.argv[1])
