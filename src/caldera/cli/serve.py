"""`caldera serve`: a model behind OpenAI's API."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caldera.cli.options import Device, Quantize, runtime_from, stderr_console, stdout_console

if TYPE_CHECKING:
    from caldera.server.page.page import PageConfig

KeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keys that open the server, one a line; or CALDERA_API_KEY."),
]
HostName = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Name by which a server without a key is reached, such as behind a proxy; many times.",
    ),
]
FetchFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST",
        help="Fetch images from this host (or HOST:PORT); * for any public one; many times. \\[default: none]",
    ),
]
MediaRoot = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder whose images clients may name by file: URLs."),
]
WithPage = Annotated[
    bool | None,
    typer.Option(
        "--web/--no-web",
        help="Have a page for browsers at /. \\[default: if caldera\\[web] is installed]",
    ),
]
Beside = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="A second model, which answers beside the first on the page."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a limit, such as limits.images, media.max_bytes or engine.slots; many times.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, or auto: float32 if stored so, else bfloat16 where the processor is fast at it."
    ),
]


def serve(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Clients' name for it. \\[default: the folder's]")
    ] = None,
    api_key_file: KeyFile = None,
    no_auth: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without a key.")
    ] = False,
    allowed_host: HostName = None,
    allowed_media_domains: FetchFrom = None,
    allowed_local_media_path: MediaRoot = None,
    metrics: Annotated[bool, typer.Option(help="Have /metrics.")] = True,
    web: WithPage = None,
    compare_with: Beside = None,
    settings: Settings = None,
    quantize: Quantize = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Answer OpenAI's chat completions with a model, and questions on a page in a browser.

    Ends on Ctrl-C or SIGTERM, once answers under way are whole.

    [bold]Examples[/bold]

      caldera serve runs/demo/model

      caldera serve runs/demo/model --host 0.0.0.0 --key-file keys.txt

      caldera serve runs/demo/model --fetch-from images.example --set limits.images=2

      caldera serve runs/demo/model --beside runs/other/model
    """
    _check_installed()
    from caldera.overrides import apply_overrides
    from caldera.server.api.config import ServerConfig
    from caldera.server.media.loader import MediaSettings
    from caldera.server.serve import Address, log_as_json, serve

    media = MediaSettings(hosts=tuple(allowed_media_domains or ()), root=allowed_local_media_path)
    names = {"name": name or model.resolve().name, "host_names": tuple(allowed_host or ())}
    plain = ServerConfig(**names, keys=_keys(api_key_file), metrics=metrics, media=media)  # type: ignore[arg-type]
    bits = [] if quantize is None else [f"engine.quantization={quantize}"]
    chosen = apply_overrides(plain, [*bits, *(settings or ())])
    page = _page(web, compare_with)
    log_as_json()
    serve(
        model,
        Address(host=host, port=port, insecure=no_auth),
        chosen,
        compute=runtime_from(device, dtype).compute,
        match_stored_dtype=dtype == "auto",
        web=page,
        on_listening=lambda url: _tell(chosen.name, url, page),
    )
    stderr_console.print("ended", soft_wrap=True)


def _tell(name: str, url: str, page: "PageConfig | None") -> None:
    """Say where the server is."""
    stdout_console.print(f"{name} at {url}", soft_wrap=True)
    if page is not None:
        stdout_console.print(f"page at {url.removesuffix('/v1')}/", soft_wrap=True)


def _page(wanted: bool | None, beside: Path | None) -> "PageConfig | None":
    """Return what the server is told of its page; nothing if there is to be none.

    Raises:
        UsageError: It is wanted, but its packages are not installed; or a second model is given, but no page.
    """
    from caldera.errors import UsageError
    from caldera.server.page.page import PageConfig, is_installed

    if wanted is False and beside is not None:
        raise UsageError(
            "--beside is for the page, which --no-web leaves away; leave one of them away"
        )
    if wanted is False:
        return None
    if is_installed():
        return PageConfig(beside)
    needed = "the page needs Gradio: pip install 'caldera[web]'"
    if wanted or beside is not None:
        raise UsageError(f"{needed}, or leave --web and --beside away")
    stderr_console.print(f"no page: {needed}", soft_wrap=True)
    return None


def _check_installed() -> None:
    """Refuse to go on without what the extra brings.

    Raises:
        UsageError: A package is missing.
    """
    from importlib.util import find_spec

    from caldera.errors import UsageError

    missing = [one for one in ("fastapi", "uvicorn", "prometheus_client") if find_spec(one) is None]
    if missing:
        raise UsageError(f"serving needs {', '.join(missing)}: pip install 'caldera[serve]'")


def _keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys of a file and of the environment.

    Raises:
        InputError: The file cannot be read.
        UsageError: It holds none, or one that no header can carry.
    """
    from caldera.errors import InputError, UsageError

    keys = [key] if (key := os.environ.get("CALDERA_API_KEY", "").strip()) else []
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the key file {file} cannot be read: {error}") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"the key file {file} holds no key; write one a line")
        keys += found
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UsageError("a key holds spaces or signs beyond ASCII, which no header carries")
    return tuple(keys)
