"""Showing a detector's page: on this machine only, unless asked otherwise, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detr_kit.demo.guard import App, Guard
from detr_kit.demo.limits import Limits
from detr_kit.demo.loops import in_a_loop
from detr_kit.demo.page import build_page, gr
from detr_kit.demo.style import CSS, FONTS, HEAD, MONOSPACE
from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.inference.predictor import Predictor

if TYPE_CHECKING:
    from uvicorn import Server

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_ANY = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}
# Of a picture that nobody waits for: it makes the first one of a user as quick as the others.
_FIRST_SIZE_HW = (480, 640)
# Seconds that requests under way get when the server stops; open pages hold one all the time.
_PATIENCE = 1


def _say(text: str) -> None:
    print(text, flush=True)


def serve(
    predictor: Predictor,
    *,
    title: str = "Object detection",
    device: str | None = None,
    threshold: float = 0.5,
    examples: Sequence[Path] = (),
    limits: Limits | None = None,
    host: str = LOOPBACK,
    port: int | None = None,
    say: Callable[[str], None] = _say,
) -> None:
    """Show the page of `build_page` until Ctrl-C or SIGTERM.

    `port` is the first free one from 7860 on by default. With a `host` other than this machine's
    loopback, a DetrKitWarning tells that anyone who reaches the machine can use the page. `say` is
    given the page's address, and a word at the end.

    Nothing leaves the machine: no share link, no telemetry, no fonts or scripts from elsewhere.
    What users upload lies in a folder of its own that goes with the server.

    Raises DetrKitError where gradio is missing, or the port or host cannot be had.
    """
    limits = limits or Limits()
    with listen(host, port) as listener, own_surroundings() as folder:
        page = build_page(
            predictor,
            title=title,
            device=device,
            threshold=threshold,
            examples=examples,
            limits=limits,
        )
        predictor.warm_up([_FIRST_SIZE_HW])
        at = listener.getsockname()[1]
        if host not in _LOOPBACK_NAMES | {"::1"}:
            warnings.warn(
                f"host {host}: anyone who reaches this machine's port {at} can use the page; it "
                "asks for no password and does not encrypt",
                DetrKitWarning,
                stacklevel=2,
            )
        web = web_server(
            guarded(page, folder, limits, host),
            lambda: say(f"{title}: {_url(host, at)} (Ctrl-C stops it)"),
        )
        # The server stops gracefully, then passes the signal on.
        with _ended_by_sigterm(), suppress(KeyboardInterrupt):
            web.run(sockets=[listener])
    say("stopped")


@in_a_loop
def guarded(page: gr.Blocks, folder: Path, limits: Limits, host: str = LOOPBACK) -> App:
    """Return the ASGI application that answers for a page.

    It answers for nothing else of what gradio offers. `folder` is where uploads lie.
    """
    from fastapi import FastAPI

    page.has_launched = True  # else gradio looks at no path that a request names; see guard.py
    hide: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = gr.mount_gradio_app(
        FastAPI(**hide),
        page,
        path="/",
        app_kwargs=dict(hide),
        allowed_paths=[],
        footer_links=[],
        show_error=False,
        max_file_size=limits.file_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css=CSS,
        head=HEAD,
    )
    hosts = _LOOPBACK_NAMES if host in _LOOPBACK_NAMES | {"::1"} else None
    return Guard(app, folder=folder, hosts=hosts, file_bytes=limits.file_bytes)


def _theme() -> gr.themes.Base:
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE
    )
    # gradio's small print is too pale to read on white.
    return theme.set(
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_600",
    )


def web_server(app: App, on_started: Callable[[], None] = lambda: None) -> Server:
    """Return what answers for an application; its `run` takes the socket.

    `on_started` is called when it answers, and stops for a signal.
    """
    from uvicorn import Config, Server

    class Announced(Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_started()

    # Pages that are open ask for nothing that is worth a log, and are cut off in the end.
    config = Config(
        app,
        log_level="critical",
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=_PATIENCE,
    )
    return Announced(config)


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that already takes connections; they wait until the server answers.

    Raises DetrKitError where the host is unknown or the port taken.
    """
    wanted = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    reason = ""
    for number in wanted:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise DetrKitError(f"host {host}: {error.strerror}") from error
        try:
            if os.name == "posix":  # elsewhere it would give one port to two servers
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
    ports = f"port {port}" if port is not None else f"ports {wanted[0]} to {wanted[-1]}"
    raise DetrKitError(f"{ports} of host {host}: {reason}")


@contextmanager
def own_surroundings() -> Iterator[Path]:
    """Give gradio a folder that nobody else can read, and nothing to record or report.

    Yields the folder, which is removed with all that is in it.
    """
    with tempfile.TemporaryDirectory(prefix="detr-kit-demo-", ignore_cleanup_errors=True) as folder:
        own = {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
        }
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the folder of uploads goes too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signal_number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _url(host: str, port: int) -> str:
    name = _ANY.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"
