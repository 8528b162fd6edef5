"""LLaVA, whole: train, evaluate and serve a vision-language assistant from annotated images.

import caldera

model = caldera.load("runs/demo/model")
print(model.chat("What is in the image?", "dog.jpg"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caldera.chat.chat_model import ChatModel, load
    from caldera.conversation import Conversation, ImageRef, Turn, read_conversations
    from caldera.errors import CalderaError
    from caldera.inference.engine import Engine, EngineConfig
    from caldera.inference.requests import Request
    from caldera.inference.sampling import SamplingParams

__version__ = "0.2.0"

__all__ = [
    "CalderaError",
    "ChatModel",
    "Conversation",
    "Engine",
    "EngineConfig",
    "ImageRef",
    "Request",
    "SamplingParams",
    "Turn",
    "__version__",
    "load",
    "read_conversations",
]

_MODULES = {
    "CalderaError": "caldera.errors",
    "ChatModel": "caldera.chat.chat_model",
    "Conversation": "caldera.conversation",
    "Engine": "caldera.inference.engine",
    "EngineConfig": "caldera.inference.engine",
    "ImageRef": "caldera.conversation",
    "Request": "caldera.inference.requests",
    "SamplingParams": "caldera.inference.sampling",
    "Turn": "caldera.conversation",
    "load": "caldera.chat.chat_model",
    "read_conversations": "caldera.conversation",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes are of any type
    """Import a public name on first use: torch takes seconds that commands without a model need not wait."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
