"""The command line with injected faults: `faulty_server.py FAULT ... -- serve DIR ...`.

dns:HOST=ADDRESS,ADDRESS   the resolver returns these addresses for a host
loading:FILE               the weights load only when FILE exists
says:TEXT                  the text of every answer is this text
slow:SECONDS               each step of the engine takes this long
memory:WORD                a prompt whose text contains WORD runs out of memory
"""

import socket
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch


def dns(host: str, addresses: list[str]) -> None:
    """Return fixed addresses for a host; all others are resolved by the system."""
    getaddrinfo = socket.getaddrinfo

    def resolve(name: Any, port: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - like the original
        if name != host:
            return getaddrinfo(name, port, *args, **options)
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port))
            for family, address in zip(families, addresses, strict=True)
        ]

    patch.object(socket, "getaddrinfo", resolve).start()


def loading(file: Path) -> None:
    """Load the weights only when a file exists."""
    from caldera.chat.chat_model import load_engine
    from caldera.server import serve

    def load_late(*args: Any) -> Any:  # noqa: ANN401 - like the original
        while not file.exists():
            time.sleep(0.01)
        return load_engine(*args)

    patch.object(serve, "load_engine", load_late).start()


def memory(word: str) -> None:
    """Run out of memory for prompts whose text contains a word."""
    from caldera.inference.scheduler import Scheduler

    start_prefill = Scheduler._start_prefill

    def fail(self: Scheduler, sequence: Any) -> None:  # noqa: ANN401 - like the original
        if word in self._token_ids.tokenizer.decode(list(sequence.prompt.ids)):
            raise MemoryError
        start_prefill(self, sequence)

    patch.object(Scheduler, "_start_prefill", fail).start()


def says(text: str) -> None:
    """Replace the text of every answer, in its first delta."""
    from dataclasses import replace

    from caldera.inference.requests import AnswerStream, TextDelta, Usage

    push = AnswerStream.push
    started: set[int] = set()

    def push_text(self: AnswerStream, delta: TextDelta, usage: Usage) -> None:
        push(self, replace(delta, text="" if id(self) in started else text), usage)
        started.add(id(self))

    patch.object(AnswerStream, "push", push_text).start()


def slow(seconds: float) -> None:
    """Sleep after each step of the engine."""
    from caldera.inference.scheduler import Scheduler

    step = Scheduler.step

    def slow_step(self: Scheduler) -> None:
        step(self)
        time.sleep(seconds)

    patch.object(Scheduler, "step", slow_step).start()


def main() -> None:
    """Inject the faults and run the command."""
    split = sys.argv.index("--")
    for fault in sys.argv[1:split]:
        kind, _, argument = fault.partition(":")
        match kind:
            case "dns":
                host, _, addresses = argument.partition("=")
                dns(host, addresses.split(","))
            case "loading":
                loading(Path(argument))
            case "says":
                says(argument)
            case "slow":
                slow(float(argument))
            case "memory":
                memory(argument)
            case _:
                raise ValueError(fault)
    from caldera.cli import main as run

    sys.argv[1:] = sys.argv[split + 1 :]
    run()


if __name__ == "__main__":
    main()
