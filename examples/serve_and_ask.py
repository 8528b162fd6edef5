"""Serve a model folder and ask it with the official openai client.

python examples/serve_and_ask.py runs/demo/model runs/demo/scenes/held_out/held_out/000001.jpg
"""

import base64
import subprocess
import sys
from pathlib import Path

from openai import OpenAI


def main(folder: str, image: str) -> None:
    """Start a server on a free port, ask one question, stop the server."""
    command = [
        sys.executable,
        "-m",
        "caldera",
        "serve",
        folder,
        "--port",
        "0",
        "--no-web",
        "--name",
        "llava",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        address = server.stdout.readline().split()[-1]  # "llava at http://127.0.0.1:41234/v1"
        try:
            client = OpenAI(base_url=address, api_key="none")
            url = "data:image/jpeg;base64," + base64.b64encode(Path(image).read_bytes()).decode()
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "What is in the image?"},
            ]
            reply = client.chat.completions.create(
                model="llava", messages=[{"role": "user", "content": content}], max_tokens=40
            )
            print(reply.choices[0].message.content)
        finally:
            server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
