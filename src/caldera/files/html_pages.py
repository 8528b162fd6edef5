"""HTML pages from packaged Jinja templates; every text is escaped."""

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined


def render_page(package: str, template: str, **variables: object) -> str:
    """Render a template of a package's folder; templates it includes are in the same folder.

    Args:
        package: Package, with the folder of its templates after a slash: 'caldera.evaluation/pages'.
        template: Name of the file.
        **variables: Variables of the template.
    """
    name, _, folder = package.partition("/")
    environment = Environment(
        loader=FunctionLoader(lambda file: (files(name) / folder / file).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**variables)
