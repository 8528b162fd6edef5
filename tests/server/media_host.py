"""A host of images on loopback: each path answers with the bytes a test wrote for it, well-formed or not."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

Script = Callable[[str], Iterator[bytes]]
"""A path to what is sent, piece by piece; the connection closes at the end."""


class MediaHost:
    """Listens until it is closed, and counts who comes."""

    def __init__(self, script: Script) -> None:
        """Start to listen."""
        self.script = script
        self.paths: list[str] = []
        self.sent = 0
        """Bytes that were taken from it, of the answer that was read last."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address, without a slash."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop to listen."""
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
                head = connection.recv(1 << 16).decode("latin-1")
                path = head.split(" ")[1]
                self.paths.append(path)
                sent = 0
                for piece in self.script(path):
                    connection.sendall(piece)
                    sent += len(piece)
                    self.sent = sent
            except (OSError, IndexError):
                return


def response(
    body: bytes = b"", status: str = "200 OK", *headers: str, length: int | None = None
) -> bytes:
    """Return a whole answer; its length as it is, or as it is said to be."""
    said = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {said}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(location: str) -> bytes:
    """Return an answer that leads elsewhere."""
    return response(b"", "302 Found", f"Location: {location}")


def drip(piece: bytes, seconds: float) -> Iterator[bytes]:
    """Yield something again and again, slowly, for as long as a test may last."""
    for _ in range(1000):
        yield piece
        time.sleep(seconds)
