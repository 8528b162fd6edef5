"""caldera: LLaVA, whole. Annotated images in, a visual assistant out.

import caldera
llava = caldera.load("runs/demo/model")
print(llava.chat("What is in the image?", "dog.jpg"))
"""

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes are of any type
    """Import `load` when it is first asked for, as it takes seconds that commands without a model need not wait."""
    if name == "load":
        from caldera.chat.chat_model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
