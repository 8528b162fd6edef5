"""Train an assistant on your own images: a CSV file of captions in, a model folder out.

    python examples/train_on_your_images.py photos/captions.csv runs/mine

The CSV file has the columns `image` (path relative to the file) and `caption`. Captions alone allow no dialogues
offline, so both stages train on them here; with boxes (`data generate coco`) or an LLM teacher (`--teacher openai`)
stage 2 gets dialogues. The tiny backbones that ship with caldera know drawn scenes only: for photos pass `--vision` and
`--language` of real ones to `train pretrain`. Further arguments go to both stages, such as `--set max_steps=100`.
"""

import subprocess
import sys
from pathlib import Path


def caldera(*arguments: str | Path) -> None:
    """Run a caldera command; stop at the first that fails."""
    subprocess.run([sys.executable, "-m", "caldera", *map(str, arguments)], check=True)


def main(captions: str, out: str, *settings: str) -> None:
    """Write instruction data, train both stages, and show where the model is."""
    run = Path(out)
    run.mkdir(parents=True, exist_ok=True)
    caldera(
        "data", "generate", "pairs", captions, "--kinds", "caption", "--out", run / "captions.json"
    )
    caldera(
        "data",
        "generate",
        "pairs",
        captions,
        "--kinds",
        "caption",
        "--seed",
        "1",
        "--out",
        run / "dialogues.json",
    )
    caldera("data", "check", run / "dialogues.json")
    caldera(
        "train", "pretrain", "--data", run / "captions.json", "--out", run / "stage1", *settings
    )
    caldera(
        "train", "finetune", "--model", run / "stage1" / "model", "--data", run / "dialogues.json",
        "--out", run / "stage2", *settings,
    )  # fmt: skip
    print(f"chat with it: caldera chat {run / 'stage2' / 'model'} --image IMAGE")


if __name__ == "__main__":
    main(*sys.argv[1:])
