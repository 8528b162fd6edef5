"""Command `caldera serve`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caldera.cli.options import (
    Device,
    ModelName,
    Offline,
    Quantize,
    StoredDtype,
    print_message,
    print_result,
    runtime_from,
)
from caldera.extras import describe_missing, require_extra
from caldera.overrides import apply_overrides

if TYPE_CHECKING:
    from caldera.server.page.page import PageConfig

ApiKeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="API keys, one per line; or set CALDERA_API_KEY."),
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Host name of a server without a key, such as that of a proxy. Repeatable.",
    ),
]
AllowedMediaDomains = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST",
        help="Allow image URLs of this HOST or HOST:PORT; * for any public host. Repeatable. \\[default: none]",
    ),
]
AllowedLocalMediaPath = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Allow file: URLs of images in this folder."),
]
WithPage = Annotated[
    bool | None,
    typer.Option(
        "--web/--no-web",
        help="Serve a web page at /. \\[default: if caldera\\[web] is installed]",
    ),
]
CompareWith = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Second model, shown next to the first on the page."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting, such as limits.images, media.max_bytes or engine.slots. Repeatable.",
    ),
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free port.")
]
Name = Annotated[
    str | None,
    typer.Option(
        help="Name of the model for clients. \\[default: name of the folder or on the Hub]"
    ),
]
NoAuth = Annotated[
    bool, typer.Option("--no-auth", help="Allow other machines to connect without a key.")
]


def serve(
    model: ModelName,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    api_key_file: ApiKeyFile = None,
    no_auth: NoAuth = False,
    allowed_host: AllowedHost = None,
    allowed_media_domains: AllowedMediaDomains = None,
    allowed_local_media_path: AllowedLocalMediaPath = None,
    metrics: Annotated[bool, typer.Option(help="Serve Prometheus metrics at /metrics.")] = True,
    web: WithPage = None,
    compare_with: CompareWith = None,
    settings: Settings = None,
    quantize: Quantize = None,
    device: Device = "auto",
    dtype: StoredDtype = "auto",
    offline: Offline = False,
) -> None:
    """Serve a model by OpenAI's chat completions API and on a web page.

    Ends on Ctrl-C or SIGTERM, after the running requests have finished.

    [bold]Examples[/bold]

      caldera serve runs/demo/model

      caldera serve runs/demo/model --host 0.0.0.0 --api-key-file keys.txt

      caldera serve runs/demo/model --allowed-media-domains images.example --set limits.images=2

      caldera serve llava-hf/llava-1.5-7b-hf --compare-with runs/demo/model
    """
    require_extra("serve", "serving")
    from caldera.server.api.config import ServerConfig
    from caldera.server.media.loader import MediaConfig
    from caldera.server.serve import Address, log_as_json, serve

    domains = tuple(allowed_media_domains or ())
    config = ServerConfig(
        name=name or _default_name(model),
        keys=_read_keys(api_key_file),
        allowed_hosts=tuple(allowed_host or ()),
        metrics=metrics,
        media=MediaConfig(allowed_domains=domains, root=allowed_local_media_path),
    )
    overrides = [] if quantize is None else [f"engine.quantization={quantize}"]
    config = apply_overrides(config, [*overrides, *(settings or ())])
    folder, page = _find_models(model, compare_with, web)
    log_as_json()
    serve(
        folder,
        Address(host=host, port=port, no_auth=no_auth),
        config,
        compute=runtime_from(device, dtype).compute,
        match_stored_dtype=dtype == "auto",
        page=page,
        on_listening=lambda url: _print_urls(config.name, url, page),
    )
    print_message("ended")


def _default_name(model: str) -> str:
    """Return a model's name for clients: that of its folder, or on the Hub."""
    from caldera.files.hub import parse_hub_name

    hub_name = parse_hub_name(model)
    return hub_name.repo_id if hub_name else Path(model).resolve().name


def _find_models(
    model: str, second_model: str | None, web: bool | None
) -> "tuple[Path, PageConfig | None]":
    """Return the folder of the model, and the configuration of the page with that of the second."""
    from caldera.formats.hub_models import local_folders

    page = _page_config(web, second_model)
    folder, *others = local_folders(*filter(None, (model, second_model)))
    if page is not None and others:
        page.second_model = others[0]
    return folder, page


def _print_urls(name: str, url: str, page: "PageConfig | None") -> None:
    print_result(f"{name} at {url}")
    if page is not None:
        print_result(f"page at {url.removesuffix('/v1')}/")


def _page_config(web: bool | None, second_model: str | None) -> "PageConfig | None":
    """Return the configuration of the page; None for no page."""
    from caldera.errors import UsageError
    from caldera.server.page.page import PageConfig

    if web is False:
        if second_model is not None:
            raise UsageError("--compare-with needs the web page; drop --compare-with or --no-web")
        return None
    reason = describe_missing("web", "the page")
    if not reason:
        return PageConfig()
    if web or second_model is not None:
        raise UsageError(f"{reason}, or drop --web and --compare-with")
    print_message(f"no page: {reason}")
    return None


def _read_keys(path: Path | None) -> tuple[str, ...]:
    """Return the API keys of the environment and of a file."""
    from caldera.errors import InputError, UsageError

    keys = [key] if (key := os.environ.get("CALDERA_API_KEY", "").strip()) else []
    if path is not None:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the API key file {path} cannot be read: {error}") from None
        file_keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not file_keys:
            raise UsageError(f"the API key file {path} contains no key; write one key per line")
        keys += file_keys
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UsageError("an API key contains a space or a non-ASCII character; use another key")
    return tuple(keys)
