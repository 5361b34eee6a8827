"""What stands before the server, without one behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from detr_kit.demo.guard import HEADERS, Guard
from detr_kit.demo.uploads import LARGEST_UPLOADS

Message = dict[str, Any]


class Behind:
    """An application that notes what it is asked and answers with a status and two pieces."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.received: list[Message] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            self.received.append(message)
            if not message.get("more_body"):
                break
        headers = [(b"content-type", b"text/html")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"Traceback ", "more_body": True})
        await send({"type": "http.response.body", "body": b"of secrets"})


LOCALHOST = ((b"host", b"localhost:7860"),)


def ask(
    behind: Behind,
    path: str,
    pieces: Sequence[bytes] = (b"",),
    *,
    folder: Path = Path("/nowhere"),
    headers: Sequence[tuple[bytes, bytes]] = LOCALHOST,
    method: str = "POST",
    hosts: frozenset[str] | None = frozenset({"localhost"}),
) -> tuple[int, bytes, dict[bytes, bytes]]:
    """Return status, body and headers of the answer to a request whose body comes in pieces."""
    guard = Guard(behind, folder=folder, hosts=hosts, file_bytes=1000)
    return asyncio.run(answer_of(guard, path, pieces, headers=headers, method=method))


async def answer_of(
    guard: Guard,
    path: str,
    pieces: Sequence[bytes] = (b"",),
    *,
    headers: Sequence[tuple[bytes, bytes]] = LOCALHOST,
    method: str = "POST",
) -> tuple[int, bytes, dict[bytes, bytes]]:
    waiting = [
        {"type": "http.request", "body": piece, "more_body": place + 1 < len(pieces)}
        for place, piece in enumerate(pieces)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await guard(scope, receive, send)
    start, *bodies = sent
    body = b"".join(message["body"] for message in bodies)
    return start["status"], body, dict(start["headers"])


def test_answers_pass_with_headers_added() -> None:
    status, body, headers = ask(Behind(), "/")
    assert (status, body) == (200, b"Traceback of secrets")
    assert dict(HEADERS).items() <= headers.items()
    assert headers[b"content-type"] == b"text/html"


def test_what_goes_wrong_inside_is_not_told() -> None:
    status, body, headers = ask(Behind(500), "/")
    assert (status, body) == (500, b"the server failed; its terminal tells why")
    assert headers[b"content-length"] == str(len(body)).encode()


def test_a_full_queue_is_told() -> None:
    assert ask(Behind(503), "/gradio_api/queue/join")[:2] == (503, b"Traceback of secrets")


def test_a_body_in_pieces_is_examined_and_arrives_whole(tmp_path: Path) -> None:
    own = str(tmp_path / "x" / "street.png").encode()
    behind = Behind()
    pieces = [b'{"data": [{"path": "', own, b'"}]}']
    assert ask(behind, "/gradio_api/queue/join", pieces, folder=tmp_path)[0] == 200
    assert [message["body"] for message in behind.received] == [b"".join(pieces)]


@pytest.mark.parametrize(
    "body",
    [
        b'{"path": "/etc/passwd"}',
        b'{"data": [[{"a": {"path": "/etc/passwd"}}]]}',
        b'{"data": [{"path": ["/etc/passwd"]}]}',
        b'{"data": [{"path": 3}]}',
        b'{"data": [{"path": null}]}',
        b'[{"path": "http://localhost/"}]',
        b'{"data": [{"p\\u0061th": "/etc/passwd"}]}',
    ],
)
def test_a_path_anywhere_in_a_body_must_be_of_the_folder(body: bytes, tmp_path: Path) -> None:
    behind = Behind()
    assert ask(behind, "/gradio_api/run/predict", [body], folder=tmp_path)[0] == 403
    assert behind.received == []


def test_uploads_are_not_json_and_stream_through() -> None:
    behind = Behind()
    assert ask(behind, "/gradio_api/upload", [b"\xff" * 500, b"\xfe" * 500])[0] == 200
    assert [len(message["body"]) for message in behind.received] == [500, 500]


def test_an_upload_that_goes_on_for_too_long_is_hung_up_on() -> None:
    behind = Behind()
    ask(behind, "/gradio_api/upload", [b"x" * 40_000] * 4)
    assert [message["type"] for message in behind.received] == [
        "http.request",
        "http.disconnect",
    ]


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/gradio_api/upload", 60_000, 200),
        ("/gradio_api/upload", 70_000, 413),
        ("/gradio_api/upload/", 70_000, 413),
        ("/gradio_api/queue/join", 70_000, 413),
    ],
)
def test_a_length_that_is_too_large_is_refused_at_once(path: str, size: int, status: int) -> None:
    headers = [(b"host", b"localhost"), (b"content-length", str(size).encode())]
    assert ask(Behind(), path, headers=headers)[0] == status


@pytest.mark.parametrize("path", ["/config/x", "/x/config", "/gradio_api/run/predict/x"])
def test_paths_are_open_in_full_or_not_at_all(path: str) -> None:
    assert ask(Behind(), path)[0] == 404


def test_only_files_of_the_folder_are_given_out(tmp_path: Path) -> None:
    for path, status in (
        (f"{tmp_path}/x/street.png", 200),
        (f"{tmp_path}/../street.png", 403),
        ("/etc/passwd", 403),
        ("https://example.org/street.png", 403),
        ("", 403),
    ):
        assert ask(Behind(), f"/gradio_api/file={path}", folder=tmp_path)[0] == status


def test_a_request_without_a_host_is_refused() -> None:
    assert ask(Behind(), "/", headers=[])[0] == 403


UPLOAD = "/gradio_api/upload"
FROM_ELSEWHERE = [
    {"origin": "http://evil.example", "sec-fetch-site": "cross-site"},
    {"origin": "http://evil.example"},
    {"sec-fetch-site": "cross-site"},
    {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://localhost"},
    {"origin": "http://evil.example/localhost:7860"},
    {"origin": "http://localhost:7860.evil.example"},
    {"origin": "null"},
    {"origin": ""},
]
FROM_HERE = [
    {},  # no browser
    {"origin": "http://localhost:7860", "sec-fetch-site": "same-origin"},
    {"origin": "http://localhost:7860"},
    {"origin": "https://LOCALHOST:7860"},
    {"sec-fetch-site": "none"},
]


def browser(more: dict[str, str]) -> list[tuple[bytes, bytes]]:
    headers = {"host": "localhost:7860", **more}
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@pytest.mark.parametrize("more", FROM_ELSEWHERE)
@pytest.mark.parametrize("hosts", [frozenset({"localhost"}), None])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", UPLOAD), ("POST", UPLOAD + "/"), ("OPTIONS", UPLOAD), ("POST", "/gradio_api/cancel")],
)
def test_another_page_in_the_browser_can_send_nothing(
    more: dict[str, str], hosts: frozenset[str] | None, method: str, path: str
) -> None:
    behind = Behind()
    answer = ask(behind, path, headers=browser(more), method=method, hosts=hosts)
    assert answer[:2] == (403, b"this page takes nothing from other pages")
    assert behind.received == []


@pytest.mark.parametrize("more", FROM_HERE)
def test_the_page_itself_and_what_is_no_browser_can_send(more: dict[str, str]) -> None:
    assert ask(Behind(), UPLOAD, headers=browser(more))[0] == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_another_page_can_lead_here(method: str) -> None:
    assert ask(Behind(), "/", headers=browser(FROM_ELSEWHERE[0]), method=method)[0] == 200


def test_uploads_are_refused_while_the_folder_is_full(tmp_path: Path) -> None:
    behind = Behind()
    guard = Guard(behind, folder=tmp_path, hosts=None, file_bytes=1000)
    full = tmp_path / "street.png"
    full.write_bytes(bytes(LARGEST_UPLOADS * guard.uploads.upload_bytes))
    answer = asyncio.run(answer_of(guard, UPLOAD))
    assert answer[:2] == (507, b"too many pictures came; try again in some minutes")
    assert behind.received == []
    assert asyncio.run(answer_of(guard, "/gradio_api/run/predict"))[0] == 200
    full.unlink()
    assert asyncio.run(answer_of(guard, UPLOAD))[0] == 200


def test_uploads_that_come_together_share_the_room(tmp_path: Path) -> None:
    class Slow(Behind):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.02)
            await super().__call__(scope, receive, send)

    guard = Guard(Slow(), folder=tmp_path, hosts=None, file_bytes=1000)

    async def together() -> list[int]:
        uploads = (answer_of(guard, UPLOAD) for _ in range(LARGEST_UPLOADS + 5))
        return [status for status, *_ in await asyncio.gather(*uploads)]

    for _ in range(2):
        assert sorted(asyncio.run(together())) == [200] * LARGEST_UPLOADS + [507] * 5


def test_other_protocols_get_no_answer() -> None:
    behind = Behind()
    guard = Guard(behind, folder=Path("/nowhere"), hosts=None, file_bytes=1000)

    async def never(*message: Any) -> Any:
        raise AssertionError("answered")

    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, never, never))
    assert behind.received == []
