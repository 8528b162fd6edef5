"""What a server is told of its page in, the page out once the server has its service."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from starlette.types import ASGIApp

from caldera.chat.api.service import Service
from caldera.chat.web.answering import Model
from caldera.inference.engine import Engine


def is_installed() -> bool:
    """Tell whether the page's packages are installed."""
    return find_spec("gradio") is not None


@dataclass(slots=True)
class Web:
    """The page of a server, and the model that answers there beside the server's own."""

    beside: Path | None = None
    """Folder of a second model, which the page alone asks."""
    second: Engine | None = None
    """Its engine, once it is loaded, which is before the server's own is."""

    def page(self, service: Service) -> ASGIApp:
        """Return the page; its packages must be installed."""
        from caldera.chat.web.page import create_page

        own = service.settings.name
        models = [Model(own, lambda: service.engine)]
        if self.beside is not None:
            path = self.beside.resolve()
            name = path.name if path.name != own else f"{path.parent.name}/{path.name}"
            models.append(Model(name, lambda: self._second(service)))
        return create_page(service, models)

    def _second(self, service: Service) -> Engine:
        """Return the second engine, while requests are taken.

        Raises:
            ApiError: They are not.
        """
        _ = service.engine
        assert self.second is not None
        return self.second
