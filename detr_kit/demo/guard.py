"""What stands before the page's server: few paths, small bodies, a browser that stays here.

gradio answers whoever can reach it, and trusts what they send more than a page like this one can:
a mounted page (6.31) reads any file of the machine that a request names as an upload, and fetches
any address. It also takes uploads from any page that a browser shows, as many as come. Nothing of
that gets through here, whatever a version of it does.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from detr_kit.demo.uploads import UploadFolder

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# All that the page asks for. gradio answers much more: descriptions of its functions, a proxy,
# monitoring, editing.
OPEN_PATHS = re.compile(
    r"/(|config|theme\.css|favicon\.ico|manifest\.json|assets/.*|static/.*|svelte/.*"
    r"|gradio_api/(queue/(join|data)|run/predict|upload|upload_progress|heartbeat/\w+"
    r"|file=.*|reset|cancel|app_id|startup-events))/?"
)
UPLOAD_PATH, FILE_PATH = "/gradio_api/upload", "/gradio_api/file="
# The browser loads from this server and from nowhere else, whatever the page says. gradio's own
# templates are evaluated as text.
CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
# The most bytes of what a user chose on the page, and of what surrounds a file in its request.
_CHOICES = 64 * 2**10
_AROUND_A_FILE = 64 * 2**10


class Guard:
    """An ASGI application around another one.

    `folder` is where uploads lie: a request may name files in it and no others. `hosts` are the
    names that a request may call this machine, None for any: a page of somewhere else whose name
    is made to point here gets no answer. `file_bytes` bounds an upload, `UploadFolder` all of them.
    A page of somewhere else that a browser shows can lead here, and send nothing.
    """

    def __init__(
        self, app: App, *, folder: Path, hosts: frozenset[str] | None, file_bytes: int
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.uploads = UploadFolder(folder.resolve(), file_bytes + _AROUND_A_FILE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            sweeping = asyncio.create_task(self.uploads.sweep_regularly())
            try:
                await self.app(scope, receive, send)
            finally:
                sweeping.cancel()
        elif scope["type"] == "http":
            try:
                receive = await self._examined(scope, receive)
            except _Refused as refused:
                await _answer(send, refused)
            else:
                with self.uploads.arriving() if _is_upload(scope) else nullcontext():
                    await self.app(scope, receive, _with_headers(send))

    async def _examined(self, scope: Scope, receive: Receive) -> Receive:
        """Return what gives the request's body. Raises _Refused."""
        headers = dict(scope["headers"])
        path = scope["path"]
        if not OPEN_PATHS.fullmatch(path):
            raise _Refused(404, "not found")
        if self.hosts is not None and _host_name(headers.get(b"host", b"")) not in self.hosts:
            raise _Refused(403, "this page is open to this machine only")
        if scope["method"] not in ("GET", "HEAD") and _is_from_elsewhere(headers):
            raise _Refused(403, "this page takes nothing from other pages")
        if path.startswith(FILE_PATH):
            self._require_own(path.removeprefix(FILE_PATH))
        limit = self.uploads.upload_bytes if _is_upload(scope) else _CHOICES
        if int(headers.get(b"content-length", b"0")) > limit:
            raise _Refused(413, "too large")
        if _is_upload(scope):
            if not self.uploads.has_room():
                raise _Refused(507, "too many pictures came; try again in some minutes")
            return _bounded(receive, limit)
        body = await _read(receive, limit)
        self._require_own_files(body)
        return _given(body, receive)

    def _require_own_files(self, body: bytes) -> None:
        try:
            named = list(_paths_in(json.loads(body))) if body else []
        except (ValueError, RecursionError) as error:
            raise _Refused(400, "not json") from error
        for path in named:
            self._require_own(path)

    def _require_own(self, path: Any) -> None:
        try:
            own = isinstance(path, str) and self.uploads.path in Path(path).resolve().parents
        except (OSError, ValueError):  # too long, with a null
            own = False
        if not own:
            raise _Refused(403, "not a file of this page")


class _Refused(Exception):
    """Why a request goes no further: a status and a word about it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def _is_upload(scope: Scope) -> bool:
    return scope["path"].rstrip("/") == UPLOAD_PATH


def _is_from_elsewhere(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser tells that the page of another address asks.

    Such a page can send a form, files included, without asking first. Older browsers, and all of
    them where this page is on a network without encryption, tell the origin only.
    """
    if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
        return True
    origin = headers.get(b"origin")
    if origin is None:  # no browser
        return False
    return origin.lower().partition(b"://")[2] != headers.get(b"host", b"").lower()


def _paths_in(value: Any) -> Iterator[Any]:
    """Yield what is called `path` in json, at any depth."""
    if isinstance(value, dict):
        yield from (each for key, each in value.items() if key == "path")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _paths_in(each)


async def _read(receive: Receive, limit: int) -> bytes:
    """Return the body of a request, of `limit` bytes at most. Raises _Refused."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise _Refused(413, "too large")
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


def _given(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read already, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return waiting.pop() if waiting else await receive()

    return given


def _bounded(receive: Receive, limit: int) -> Receive:
    """Hang up on a body that has no length in its head and goes on for too long."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return message if received <= limit else {"type": "http.disconnect"}

    return bounded


def _host_name(header: bytes) -> str:
    """Return a Host header's name without the port."""
    return re.sub(r":\d*$", "", header.decode("latin-1").lower())


def _with_headers(send: Send) -> Send:
    """Add the headers; tell nothing of what went wrong inside, as gradio up to 6.0 does."""
    failed = False

    async def with_headers(message: Message) -> None:
        nonlocal failed
        if message["type"] == "http.response.start":
            failed = message["status"] == 500
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        if not failed:
            await send(message)
        elif message["type"] == "http.response.start":
            await _answer(send, _Refused(500, "the server failed; its terminal tells why"))

    return with_headers


async def _answer(send: Send, refused: _Refused) -> None:
    body = refused.reason.encode()
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(body)).encode()),
        *HEADERS,
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
