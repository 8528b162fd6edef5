"""Time and memory of checking a data file of mix665k's size: `python benchmarks/data_check.py`.

Writes 665,000 records laid out as LLaVA-1.5's mix (arXiv 2310.03744, table 7): as many of each set, with about as
many turns and words, texts made of common words. Then runs `caldera data check --no-open` on it as a user would, in a
process of its own, and prints wall time, processor time and peak memory (the kernel's ru_maxrss). Images are empty
files, found but not opened. --records 66500 shows the same in a tenth of the time.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RECORDS = 665_000
SETS = (
    ("llava", 158, 5, 9, 55, True),
    ("sharegpt", 40, 6, 40, 150, False),
    ("vqav2", 83, 11, 12, 1, True),
    ("gqa", 72, 18, 16, 1, True),
    ("okvqa", 9, 2, 16, 1, True),
    ("ocr_vqa", 80, 10, 15, 3, True),
    ("aokvqa", 66, 2, 35, 1, True),
    ("textcaps", 22, 1, 20, 13, True),
    ("refcoco", 48, 9, 12, 10, True),
    ("vg", 86, 10, 12, 8, True),
)
"""Name, thousands of records, questions of one, words of a question and of an answer, whether it shows an image."""

WORDS = tuple(
    """
    the a man is in image what of dog on and table color answer question using single word or phrase there two people
    standing near street with his red bicycle which appears to be waiting for bus that has just arrived at station
    """.split()  # noqa: SIM905 - a list of words reads better so
)
IMAGES = 1000
"""Files in the folder; records share them, as looking for one costs the same."""


def record(number: int, kind: int, rng: random.Random) -> dict[str, object]:
    """Return one record of a set."""
    name, _, questions, asked, answered, shows = SETS[kind]
    turns = []
    for turn in range(max(1, round(rng.gauss(questions, questions / 3)))):
        mark = "<image>\n" if shows and turn == 0 else ""
        turns.append({"from": "human", "value": mark + " ".join(rng.choices(WORDS, k=asked))})
        turns.append({"from": "gpt", "value": " ".join(rng.choices(WORDS, k=answered))})
    shown = {"image": f"images/{number % IMAGES:06d}.jpg"} if shows else {}
    return {"id": f"{name}-{number:09d}", **shown, "conversations": turns}


def written(file: Path, records: int) -> Iterator[str]:
    """Yield the file's text, piece by piece."""
    rng = random.Random(5)
    weights = [share for _, share, *_ in SETS]
    for number in range(records):
        [kind] = rng.choices(range(len(SETS)), weights)
        yield ("[\n" if number == 0 else ",\n") + json.dumps(record(number, kind, rng), indent=1)
    yield "\n]\n"


def main() -> None:
    """Write the file, check it, print what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--folder", type=Path, help="Where to write; kept.")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        file = folder / f"mix{chosen.records}.json"
        if not file.exists():
            (folder / "images").mkdir(parents=True, exist_ok=True)
            for number in range(IMAGES):
                (folder / "images" / f"{number:06d}.jpg").touch()
            with file.open("w") as out:
                out.writelines(written(file, chosen.records))
        print(f"{file}: {chosen.records:,} records, {file.stat().st_size / 1e6:,.0f} MB")
        print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors")
        begun = time.monotonic()
        words = [sys.executable, "-m", "caldera", "data", "check", str(file), "--no-open"]
        subprocess.run(words, check=True)
        wall = time.monotonic() - begun
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = took.ru_utime + took.ru_stime
    print(f"wall {wall:.1f} s, processor {processor:.1f} s, peak {took.ru_maxrss / 1e6:.2f} GB")
    print(f"load after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
