"""What int8 costs in quality: `python benchmarks/int8_quality.py --model DEMO_RUN --language FOLDER --text FILE`.

- with `--model`, a run folder of `caldera demo`: questions about its held-out scenes, answered by the engine with
  weights as they are stored and in int8: share of right answers, and of answers that are the same
- with `--language` and `--text`, a language model and a text it has not learned: perplexity, and the share of places at
  which the likeliest token is that of fp32, for fp32, bf16 and int8
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
from caldera.files.skipped import SkippedItems
from caldera.formats.model_folder import load_model_folder
from caldera.images.decoding import open_image
from caldera.inference.choose_decoder import choose_decoder
from caldera.inference.engine import Engine, EngineConfig, Request, SamplingParams
from caldera.inference.packed_linear import Quantization

WINDOW = 512
"""Tokens of a text that are read together."""


def answers_of(
    model: Path, folder: Path, benchmark: Benchmark, bits: Quantization
) -> dict[str, str]:
    """Ask an assistant all questions of a benchmark."""
    with Engine(load_model_folder(model), EngineConfig(quantization=bits, slots=16)) as engine:
        answers, waiting = {}, []
        for item in benchmark.items:
            shown = [
                engine.prepare_image(open_image(folder / path)) for path in item.conversation.images
            ]
            request = Request(
                engine.build_prompt(item.conversation, shown),
                SamplingParams(max_new_tokens=benchmark.max_new_tokens),
            )
            waiting.append((item.id, engine.submit(request)))
            if len(waiting) > 64:
                name, answering = waiting.pop(0)
                answers[name] = answering.read_all()
        return answers | {name: answering.read_all() for name, answering in waiting}


def compare_answers(run: Path) -> None:
    """Print how a demo's assistant does with either weights."""
    held_out = read_coco(run / "scenes" / "held_out", SkippedItems())
    benchmark = build_questions(
        held_out, name="scenes", per_image=6, context_per_image=1, seed=11, relative_to=run
    )
    stored = answers_of(run / "model", run, benchmark, "as stored")
    small = answers_of(run / "model", run, benchmark, "int8")
    same = sum(stored[name] == small[name] for name in stored) / len(stored)
    print(
        f"{run}: {len(stored)} questions, right {benchmark.score(stored).overall:.4f} as stored, "
    )
    print(f"  {benchmark.score(small).overall:.4f} in int8; {same:.1%} of the answers are the same")


@torch.inference_mode()
def logits_of(folder: Path, ids: Tensor, dtype: torch.dtype, bits: Quantization) -> Tensor:
    """Return a language model's logits at all places but the last of each window, (places, vocabulary)."""
    language = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    decoder = choose_decoder(language, 1, bits=bits)
    table = language.get_input_embeddings()
    rows = []
    for window in ids.split(WINDOW):
        rows.append(decoder.prefill(0, table(window[:1])).float())
        rows += [decoder.decode([0], [int(token)])[0].float() for token in window[1:-1]]
        decoder.reset(0)
    return torch.stack(rows)


def compare_perplexity(folder: Path, text: Path, tokens: int) -> None:
    """Print what a language model makes of a text in three precisions."""
    words = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(words(text.read_text()).input_ids[:tokens])
    wanted = torch.cat([window[1:] for window in ids.split(WINDOW)])
    exact = logits_of(folder, ids, torch.float32, "as stored")
    print(f"{folder}: {len(wanted)} tokens of {text}")
    for name, dtype, bits in (
        ("fp32", torch.float32, "as stored"),
        ("bf16", torch.bfloat16, "as stored"),
        ("int8", torch.bfloat16, "int8"),
    ):
        logits = logits_of(folder, ids, dtype, bits)  # type: ignore[arg-type] # bits
        nats = torch.nn.functional.cross_entropy(logits, wanted)
        same = (logits.argmax(dim=-1) == exact.argmax(dim=-1)).float().mean()
        print(f"  {name}: perplexity {math.exp(nats):.3f}, likeliest token as fp32's {same:.2%}")


def main() -> None:
    """Compare what was named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="run folder of caldera demo")
    parser.add_argument("--language", type=Path, help="folder of a language model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=2048, help="of the text")
    given = parser.parse_args()
    if given.model:
        compare_answers(given.model)
    if given.language and given.text:
        compare_perplexity(given.language, given.text, given.tokens)


if __name__ == "__main__":
    main()
