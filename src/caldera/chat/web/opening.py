"""What a server is told of its page in, the page out once the server has its service."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from starlette.types import ASGIApp

from caldera.chat.api.service import Service
from caldera.chat.web.answering import PageModel
from caldera.inference.engine import Engine


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
        from caldera.chat.web.page import create_page

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
