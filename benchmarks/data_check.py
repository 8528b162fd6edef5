"""Time and memory of checking a data file of mix665k's size: `python benchmarks/data_check.py`.

Writes 665,000 records like LLaVA-1.5's mix (arXiv 2310.03744, table 7): the same number of each data set, with similar
numbers of turns and words, texts of common words. Then runs `caldera data check --no-decode-images` in its own process
and prints wall time, CPU time and peak memory (the kernel's ru_maxrss). Images are empty files that exist but are not
decoded. --records 66500 shows the same in a tenth of the time.
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
"""Name, thousands of records, questions of each, words of a question and of an answer, whether it has an image."""

WORDS = tuple(
    """
    the a man is in image what of dog on and table color answer question using single word or phrase there two people
    standing near street with his red bicycle which appears to be waiting for bus that has just arrived at station
    """.split()  # noqa: SIM905 - shorter than a list
)
IMAGES = 1000
"""Files in the folder; records share them, as checking for one costs the same."""


def record(number: int, kind: int, rng: random.Random) -> dict[str, object]:
    """Return a record of a data set."""
    name, _, questions, question_words, answer_words, has_image = SETS[kind]
    turns = []
    for turn in range(max(1, round(rng.gauss(questions, questions / 3)))):
        prefix = "<image>\n" if has_image and turn == 0 else ""
        question = " ".join(rng.choices(WORDS, k=question_words))
        turns.append({"from": "human", "value": prefix + question})
        turns.append({"from": "gpt", "value": " ".join(rng.choices(WORDS, k=answer_words))})
    image = {"image": f"images/{number % IMAGES:06d}.jpg"} if has_image else {}
    return {"id": f"{name}-{number:09d}", **image, "conversations": turns}


def json_chunks(records: int) -> Iterator[str]:
    """Yield the text of the data file in chunks."""
    rng = random.Random(5)
    weights = [share for _, share, *_ in SETS]
    for number in range(records):
        [kind] = rng.choices(range(len(SETS)), weights)
        yield ("[\n" if number == 0 else ",\n") + json.dumps(record(number, kind, rng), indent=1)
    yield "\n]\n"


def main() -> None:
    """Write the file, check it, and print time and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--folder", type=Path, help="Folder to write to, which is kept.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        file = folder / f"mix{args.records}.json"
        if not file.exists():
            (folder / "images").mkdir(parents=True, exist_ok=True)
            for number in range(IMAGES):
                (folder / "images" / f"{number:06d}.jpg").touch()
            with file.open("w") as out:
                out.writelines(json_chunks(args.records))
        print(f"{file}: {args.records:,} records, {file.stat().st_size / 1e6:,.0f} MB")
        print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
        start_time = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "caldera",
            "data",
            "check",
            str(file),
            "--no-decode-images",
        ]
        subprocess.run(command, check=True)
        wall = time.monotonic() - start_time
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    print(f"wall {wall:.1f} s, CPU {cpu:.1f} s, peak {usage.ru_maxrss / 1e6:.2f} GB")
    print(f"load after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
