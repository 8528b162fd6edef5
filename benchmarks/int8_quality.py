"""Quality loss of int8: `python benchmarks/int8_quality.py --model DEMO_RUN --language FOLDER --text FILE`.

- with `--model`, a run folder of `caldera demo`: accuracy on questions about its held-out scenes with the stored
  weights and in int8, and the fraction of equal answers
- with `--language` and `--text`, a language model and a text that it was not trained on: perplexity, and the fraction
  of positions with the same most likely token as in fp32, for fp32, bf16 and int8
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldera.annotations.coco import read_coco
from caldera.evaluation.annotation_questions import build_questions
from caldera.evaluation.benchmark import Benchmark
from caldera.files.skipped_items import SkippedItems
from caldera.formats.model_folder import load_model_folder
from caldera.images.decoding import open_image
from caldera.inference.choose_decoder import choose_decoder
from caldera.inference.engine import Engine, EngineConfig, Request, SamplingParams
from caldera.inference.packed_linear import Quantization

WINDOW = 512
"""Tokens per context of a text."""


def answers_of(
    model: Path, folder: Path, benchmark: Benchmark, quantization: Quantization
) -> dict[str, str]:
    """Return a model's answers to all questions of a benchmark."""
    config = EngineConfig(quantization=quantization, slots=16)
    with Engine(load_model_folder(model), config) as engine:
        answers, waiting = {}, []
        for item in benchmark.items:
            images = [
                engine.prepare_image(open_image(folder / path)) for path in item.conversation.images
            ]
            request = Request(
                engine.build_prompt(item.conversation, images),
                SamplingParams(max_new_tokens=benchmark.max_new_tokens),
            )
            waiting.append((item.id, engine.submit(request)))
            if len(waiting) > 64:
                name, stream = waiting.pop(0)
                answers[name] = stream.read_all()
        return answers | {name: stream.read_all() for name, stream in waiting}


def compare_answers(run: Path) -> None:
    """Print the accuracy of a demo's model with stored and with int8 weights."""
    held_out = read_coco(run / "scenes" / "held_out", SkippedItems())
    benchmark = build_questions(
        held_out, name="scenes", per_image=6, context_per_image=1, seed=11, relative_to=run
    )
    stored = answers_of(run / "model", run, benchmark, "as stored")
    int8 = answers_of(run / "model", run, benchmark, "int8")
    same = sum(stored[name] == int8[name] for name in stored) / len(stored)
    print(
        f"{run}: {len(stored)} questions, accuracy {benchmark.score(stored).overall:.4f} as stored, "
    )
    print(f"  {benchmark.score(int8).overall:.4f} in int8; {same:.1%} of the answers are equal")


@torch.inference_mode()
def logits_of(folder: Path, ids: Tensor, dtype: torch.dtype, quantization: Quantization) -> Tensor:
    """Return a language model's logits at all positions but the last of each window, (positions, vocabulary)."""
    language = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    decoder = choose_decoder(language, 1, quantization=quantization)
    embed = language.get_input_embeddings()
    logits = []
    for window in ids.split(WINDOW):
        logits.append(decoder.prefill(0, embed(window[:1])).float())
        logits += [decoder.decode([0], [int(token)])[0].float() for token in window[1:-1]]
        decoder.reset(0)
    return torch.stack(logits)


def compare_perplexity(folder: Path, text: Path, tokens: int) -> None:
    """Print the perplexity of a text in three precisions."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(text.read_text()).input_ids[:tokens])
    targets = torch.cat([window[1:] for window in ids.split(WINDOW)])
    exact = logits_of(folder, ids, torch.float32, "as stored")
    print(f"{folder}: {len(targets)} tokens of {text}")
    settings: tuple[tuple[str, torch.dtype, Quantization], ...] = (
        ("fp32", torch.float32, "as stored"),
        ("bf16", torch.bfloat16, "as stored"),
        ("int8", torch.bfloat16, "int8"),
    )
    for name, dtype, quantization in settings:
        logits = logits_of(folder, ids, dtype, quantization)
        nats = torch.nn.functional.cross_entropy(logits, targets)
        same = (logits.argmax(dim=-1) == exact.argmax(dim=-1)).float().mean()
        print(
            f"  {name}: perplexity {math.exp(nats):.3f}, same most likely token as fp32 {same:.2%}"
        )


def main() -> None:
    """Run the comparisons of the given arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="run folder of caldera demo")
    parser.add_argument("--language", type=Path, help="folder of a language model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=2048, help="of the text")
    args = parser.parse_args()
    if args.model:
        compare_answers(args.model)
    if args.language and args.text:
        compare_perplexity(args.language, args.text, args.tokens)


if __name__ == "__main__":
    main()
