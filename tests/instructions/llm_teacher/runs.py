"""Runs of the LLM teacher against a scripted server, shared by tests."""

import json
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from caldera.annotations.registry import SourceOptions
from caldera.instructions.dialogues import GeneratedData
from caldera.instructions.generate import GenerateConfig, generate_data
from caldera.instructions.llm_teacher.teacher import LLMTeacherConfig, run_folder
from caldera.llm_client.budget import Price
from caldera.llm_client.client import RequestConfig
from caldera.progress import NoProgress

KEY = "sk-loopback-0123456789abcdef"
FAST = RequestConfig(concurrency=5, initial_backoff=0.001, retries=3)


def teacher_config(
    folder: Path,
    url: str,
    kinds: str = "reasoning",
    request_config: RequestConfig = FAST,
    **options: Any,  # noqa: ANN401 - fields of LLMTeacherConfig
) -> GenerateConfig:
    """Return the configuration of a run of the openai teacher."""
    llm_teacher = LLMTeacherConfig(
        base_url=url,
        model="little-teacher",
        key=SecretStr(KEY),
        request_config=request_config,
        **{"price": Price(1.0, 2.0), **options},
    )
    return GenerateConfig(
        source="coco",
        path=folder,
        options=SourceOptions(),
        llm_teacher=llm_teacher,
        kinds=kinds,
    )


def generate(config: GenerateConfig, out: Path) -> GeneratedData:
    """Run a configuration without progress reports."""
    return generate_data(config, out, NoProgress())


def read_lines(out: Path, name: str) -> list[dict[str, Any]]:
    """Read a JSONL file of a run folder."""
    return [json.loads(line) for line in (run_folder(out) / name).read_text().splitlines()]
