"""Image host on loopback: a test writes the bytes of each response, valid or not."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

Script = Callable[[str], Iterator[bytes]]
"""Function from a path to the chunks that are sent; the connection closes at the end."""


class MediaHost:
    """Server that runs until it is closed, and records the requested paths."""

    def __init__(self, script: Script) -> None:
        """Start to listen."""
        self.script = script
        self.paths: list[str] = []
        self.sent_bytes = 0
        """Bytes of the last response that were sent."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop listening."""
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                header = connection.recv(1 << 16).decode("latin-1")
                path = header.split(" ")[1]
                self.paths.append(path)
                sent_bytes = 0
                for chunk in self.script(path):
                    connection.sendall(chunk)
                    sent_bytes += len(chunk)
                    self.sent_bytes = sent_bytes
            except (OSError, IndexError):
                return


def always(content: bytes) -> Script:
    """Return a script that sends the same response for every path."""
    return lambda path: iter([content])


def response(
    body: bytes = b"", status: str = "200 OK", *headers: str, length: int | None = None
) -> bytes:
    """Return a complete response; its declared length is `length`, or by default the right one."""
    declared = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {declared}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(location: str) -> bytes:
    """Return a response that redirects."""
    return response(b"", "302 Found", f"Location: {location}")


def drip(chunk: bytes, seconds: float) -> Iterator[bytes]:
    """Yield a chunk again and again, slowly, for as long as a test may last."""
    for _ in range(1000):
        yield chunk
        time.sleep(seconds)
