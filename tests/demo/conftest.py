"""A page of a predictor that knows what is in every picture, served once for all tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_kit.demo.limits import Limits
from tests.demo.known_objects import Knowing

# gradio's figures of its queue, which nobody looks at here, set a pandas option of the past.
PANDAS_OPTION = "ignore:'future.no_silent_downcasting' is deprecated"
LIMITS = Limits(file_bytes=100_000, pixels=1_000_000, waiting=4)


@pytest.fixture
def predictor() -> Knowing:
    return Knowing()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    Image.new("RGB", (40, 20), (10, 120, 200)).save(path)
    return path


@dataclass(frozen=True)
class Served:
    """Where a page answers, what it is bound to, its files, and what is behind it."""

    url: str
    bound_to: str
    port: int
    folder: Path
    predictor: Knowing
    app: Any


@contextmanager
def serving(example: Path) -> Iterator[Served]:
    """Serve a page with one example in another thread."""
    from detr_kit.demo.page import build_page
    from detr_kit.demo.server import LOOPBACK, guarded, listen, own_surroundings, web_server

    predictor = Knowing()
    with own_surroundings() as folder, listen(LOOPBACK, None) as listener:
        page = build_page(predictor, title="runs/best", examples=[example], limits=LIMITS)
        app = guarded(page, folder, LIMITS)
        server = web_server(app)
        address, port = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(f"http://{address}:{port}", address, port, folder, predictor, app)
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One page for all tests: starting it takes a second or two."""
    pytest.importorskip("gradio")
    example = tmp_path_factory.mktemp("examples") / "example.png"
    Image.new("RGB", (30, 30), (200, 0, 0)).save(example)
    with serving(example) as served:
        yield served
