"""How a server begins and ends: its address, what is said, what is left behind."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from detr_kit.demo import server
from detr_kit.demo.server import LOOPBACK, listen, own_surroundings, serve
from detr_kit.errors import DetrKitError, DetrKitWarning
from tests.demo.conftest import PANDAS_OPTION
from tests.demo.known_objects import Knowing

pytestmark = pytest.mark.filterwarnings(PANDAS_OPTION)


def test_the_first_free_port_is_taken() -> None:
    with listen(LOOPBACK, None) as first, listen(LOOPBACK, None) as second:
        assert 7860 <= first.getsockname()[1] < second.getsockname()[1] < 7960


def test_a_port_that_is_taken_is_an_error_with_its_name(predictor: Knowing) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DetrKitError, match=rf"port {port} of host 127\.0\.0\.1: "):
            serve(predictor, port=port)


def test_an_unknown_host_is_an_error_with_its_name(predictor: Knowing) -> None:
    with pytest.raises(DetrKitError, match=r"host no\.such\.host\.invalid: "):
        serve(predictor, host="no.such.host.invalid")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server end as soon as it would begin."""

    class Ended:
        def __init__(self, app: object, on_started: Callable[[], None]) -> None:
            self.on_started = on_started

        def run(self, sockets: list[socket.socket]) -> None:
            self.on_started()

    monkeypatch.setattr(server, "web_server", Ended)


@pytest.mark.usefixtures("at_once")
def test_the_address_is_told_and_the_end(predictor: Knowing) -> None:
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        serve(predictor, title="runs/best", say=said.append)
    [begin, end] = said
    assert begin.startswith("runs/best: http://127.0.0.1:78")
    assert begin.endswith("(Ctrl-C stops it)")
    assert end == "stopped"


@pytest.mark.usefixtures("at_once")
def test_other_hosts_come_with_a_warning(predictor: Knowing) -> None:
    said: list[str] = []
    with pytest.warns(DetrKitWarning, match=r"host 0\.0\.0\.0: anyone who reaches this machine's"):
        serve(predictor, host="0.0.0.0", say=said.append)
    assert "http://127.0.0.1:78" in said[0]


@pytest.mark.usefixtures("at_once")
def test_nothing_is_left_behind(predictor: Knowing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/a/folder/of/the/user")
    monkeypatch.delenv("GRADIO_RUN_HISTORY", raising=False)
    folders: list[str] = []
    serve(predictor, say=lambda text: folders.append(os.environ["GRADIO_TEMP_DIR"]))
    assert not Path(folders[0]).exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "/a/folder/of/the/user"
    assert "GRADIO_RUN_HISTORY" not in os.environ


def test_surroundings_are_given_back_after_an_error() -> None:
    before = dict(os.environ)

    def fail() -> None:
        with own_surroundings():
            raise ValueError("of a page")

    with pytest.raises(ValueError, match="of a page"):
        fail()
    assert dict(os.environ) == before
