"""The command line with a fault in it: `faulty_server.py FAULT ... -- serve DIR ...`.

dns:HOST=ADDRESS,ADDRESS   a resolver that gives these addresses for a host
loading:FILE               weights that come only when FILE is there
says:TEXT                  a model whose every answer is this text
slow:SECONDS               a model that takes so long for each token
memory:WORD                a model that finds no memory for prompts in which a token spells WORD
"""

import socket
import sys
import time
from pathlib import Path
from typing import Any


def dns(host: str, addresses: list[str]) -> None:
    """Give addresses for a host, and leave the others to the system."""
    asked = socket.getaddrinfo

    def answer(name: Any, port: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as its original
        if name != host:
            return asked(name, port, *args, **options)
        return [
            (
                socket.AF_INET6 if ":" in each else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (each, port),
            )
            for each in addresses
        ]

    vars(socket)["getaddrinfo"] = answer


def loading(file: Path) -> None:
    """Let weights come only when a file is there."""
    from caldera.server import serve

    load = vars(serve)["load_engine"]

    def late(*args: Any) -> Any:  # noqa: ANN401 - as its original
        while not file.exists():
            time.sleep(0.01)
        return load(*args)

    vars(serve)["load_engine"] = late


def memory(words: str) -> None:
    """Find no memory for prompts that hold the tokens of some words."""
    from caldera.inference.scheduler import Scheduler

    begin = Scheduler._start_prefill

    def short(self: Scheduler, one: Any) -> None:  # noqa: ANN401 - as its original
        text = tokenizer_of(self).decode(list(one.prompt.ids))
        if words in text:
            raise MemoryError
        begin(self, one)

    def tokenizer_of(scheduler: Scheduler) -> Any:  # noqa: ANN401 - transformers' own
        return scheduler._vocabulary.tokenizer

    Scheduler._start_prefill = short  # type: ignore[method-assign]


def says(text: str) -> None:
    """Let every answer be a text, in the first piece of the real one."""
    from dataclasses import replace

    from caldera.inference.requests import AnswerStream, TextDelta, Usage

    tell = AnswerStream.push
    begun: set[int] = set()

    def told(self: AnswerStream, piece: TextDelta, usage: Usage) -> None:
        tell(self, replace(piece, text="" if id(self) in begun else text), usage)
        begun.add(id(self))

    AnswerStream.push = told  # type: ignore[method-assign]


def slow(seconds: float) -> None:
    """Take time for each round of the engine."""
    from caldera.inference.scheduler import Scheduler

    go = Scheduler.step

    def slowly(self: Scheduler) -> None:
        go(self)
        time.sleep(seconds)

    Scheduler.step = slowly  # type: ignore[method-assign]


def main() -> None:
    """Put the faults in place and run the command."""
    split = sys.argv.index("--")
    for fault in sys.argv[1:split]:
        kind, _, rest = fault.partition(":")
        match kind:
            case "dns":
                host, _, addresses = rest.partition("=")
                dns(host, addresses.split(","))
            case "loading":
                loading(Path(rest))
            case "says":
                says(rest)
            case "slow":
                slow(float(rest))
            case "memory":
                memory(rest)
            case _:
                raise ValueError(fault)
    from caldera.cli import main as run

    sys.argv[1:] = sys.argv[split + 1 :]
    run()


if __name__ == "__main__":
    main()
