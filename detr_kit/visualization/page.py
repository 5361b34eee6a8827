"""Reports as one HTML file that needs nothing else."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from detr_kit import __version__
from detr_kit.visualization.texts import grouped, readable


def render(template: str, **values: Any) -> bytes:
    """Return the page that a file of `templates/` makes of `values`.

    All texts are escaped, save for those that a template marks as safe.
    """
    environment = Environment(
        loader=PackageLoader("detr_kit.visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(grouped=grouped, readable=readable)
    page = environment.get_template(template).render(version=__version__, **values)
    # A path of the file system need not be text.
    return page.encode(errors="replace")
