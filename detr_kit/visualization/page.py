"""Reports as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from detr_kit import __version__
from detr_kit.files import atomic_write
from detr_kit.visualization.texts import grouped, readable

# What is larger is hard to mail.
MAX_BYTES = 1_400_000


def write_page(out: Path, template: str, details: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Write the page of a template with as much detail as `MAX_BYTES` has room for.

    The first of `details` is taken with which the page has so many bytes at most; where there is
    none, the last is, and the page is as large as it then is. `details`, from the fullest to the
    shortest, say how much is told; a template finds its own as `detail`, and whether it is a
    shorter one as `is_shortened`.
    """
    page = b""
    for detail in details:
        is_shortened = detail is not details[0]
        page = render(template, detail=detail, is_shortened=is_shortened, **values)
        if len(page) <= MAX_BYTES:
            break
    with atomic_write(out) as temporary:
        temporary.write_bytes(page)


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
