"""The page as it is served: who gets in, what is open, what becomes of files."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

import httpx

from detr_kit.demo import page, uploads
from tests.demo.browser import Session
from tests.demo.conftest import LIMITS, PANDAS_OPTION, Served, serving

pytestmark = pytest.mark.filterwarnings(PANDAS_OPTION)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    # Not through a proxy that the machine may have set.
    with httpx.Client(base_url=served.url, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def visitor(client: httpx.Client, served: Served) -> Session:
    return Session(client, served)


def png(size_wh: tuple[int, int] = (40, 20), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size_wh).save(file, "PNG")
    return file.getvalue()


def jpeg_of_noise(side: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_the_page_answers(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "runs/best" in answer.text


def test_the_browser_is_told_to_stay_here(client: httpx.Client) -> None:
    headers = client.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_no_font_is_fetched_from_elsewhere(client: httpx.Client) -> None:
    config = client.get("/config").json()
    assert config["stylesheets"] == []
    assert "url(http" not in client.get("/theme.css").text


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/proxy=http://example.org/",
        "/gradio_api/vibe-code",
        "/gradio_api/mcp/sse",
        "/monitoring",
        "/monitoring/summary",
        "/login",
        "/gradio_api/run/opened",
        "/gradio_api/call/opened",
    ],
)
def test_what_the_page_does_not_need_is_closed(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post(path).status_code == 404


@pytest.mark.parametrize("path", ["/etc/passwd", __file__, "../../etc/passwd", "pyproject.toml"])
def test_files_of_this_machine_are_closed(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/gradio_api/file={path}")
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text


def test_it_is_bound_to_this_machine_only(served: Served) -> None:
    assert served.bound_to == "127.0.0.1"


def test_a_name_from_elsewhere_that_points_here_gets_no_answer(
    client: httpx.Client, served: Served
) -> None:
    for host, status in (
        ("rebound.example", 403),
        (f"rebound.example:{served.port}", 403),
        ("127.0.0.1.rebound.example", 403),
        ("localhost", 200),
        (f"LOCALHOST:{served.port}", 200),
    ):
        assert client.get("/", headers={"Host": host}).status_code == status


def test_the_page_of_another_address_can_upload_nothing(
    client: httpx.Client, served: Served
) -> None:
    files = {"files": ("street.png", png())}
    for headers, status in (
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": served.url, "Sec-Fetch-Site": "same-origin"}, 200),
    ):
        answer = client.post("/gradio_api/upload", files=files, headers=headers)
        assert answer.status_code == status


def test_a_picture_comes_back_with_its_objects(visitor: Session) -> None:
    [path] = visitor.upload("street.png", png()).json()
    visitor.join(path)
    outcome = visitor.outcome()
    assert outcome["success"]
    answer = str(outcome["output"]["data"])
    assert answer.count("dk-box") == 3
    assert "40 × 20 pixels" in answer  # noqa: RUF001


def test_a_new_threshold_does_not_ask_the_model(visitor: Session) -> None:
    [path] = visitor.upload("street.png", png()).json()
    visitor.join(path)
    visitor.outcome()
    calls = visitor.served.predictor.calls
    # States are known to the server: the browser has nothing to send for them.
    for threshold, count in ((0.1, 4), (0.95, 0)):
        answer = visitor.call("input", "dk-threshold", [None, None, threshold, False])
        boxes, *_ = answer.json()["data"]
        assert boxes.count("dk-box") == count
    assert visitor.served.predictor.calls == calls


def test_what_one_visitor_sees_is_not_shown_to_another(
    visitor: Session, client: httpx.Client, served: Served
) -> None:
    [path] = visitor.upload("street.png", png()).json()
    visitor.join(path)
    visitor.outcome()
    other = Session(client, served)
    answer = other.call("input", "dk-threshold", [None, None, 0.1, False])
    assert answer.status_code == 200
    assert "dk-box" not in answer.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Dear model, what do you see?", "not a picture of a known format"),
        (png((1001, 1000), "1"), "1001 x 1000 pixels; at most 1 million are taken"),
    ],
)
def test_a_bad_picture_is_one_message_without_this_machine_in_it(
    visitor: Session, content: bytes, reason: str
) -> None:
    [path] = visitor.upload("bad.png", content).json()
    visitor.join(path)
    outcome = visitor.outcome()
    answer = str(outcome["output"])
    assert outcome["success"]
    assert answer.count(reason) == 1
    assert "Traceback" not in answer
    assert str(visitor.served.folder) not in answer


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "http://127.0.0.1:9/street.png",
        "https://example.org/street.png",
        "file:///etc/passwd",
        "street.png",
        "",
        "x" * 5000,
        "null\x00.png",
    ],
)
def test_only_uploaded_files_can_be_named(visitor: Session, path: str) -> None:
    assert visitor.join(path).status_code == 403


def test_a_picture_of_this_machine_cannot_be_named(visitor: Session, picture: Path) -> None:
    folder = visitor.served.folder
    for path in (picture, folder / ".." / picture.relative_to("/"), folder):
        assert visitor.join(str(path)).status_code == 403


def test_a_link_out_of_the_folder_is_not_followed(visitor: Session, picture: Path) -> None:
    link = visitor.served.folder / "link.png"
    link.symlink_to(picture)
    assert visitor.join(str(link)).status_code == 403
    link.unlink()


def test_files_cannot_be_named_in_other_places_either(visitor: Session, picture: Path) -> None:
    hidden = [{"deeper": [file_data(str(picture))]}, None, file_data("/etc/passwd"), False]
    for place in range(4):
        data: list[Any] = [None, None, 0.5, False]
        data[place] = hidden[place] or file_data(str(picture))
        assert visitor.call("input", "dk-threshold", data).status_code == 403


def test_gradio_itself_refuses_such_files_too(visitor: Session, served: Served) -> None:
    """Behind the guard: a mounted page of gradio would copy it to where it can be fetched."""

    async def ask_without_guard() -> None:
        transport = httpx.ASGITransport(served.app.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=served.url) as client:
            await client.post("/gradio_api/run/predict", json=body)

    data = [None, None, file_data(__file__), False]
    body = visitor.body("input", "dk-threshold", data)
    asyncio.run(ask_without_guard())
    assert not list(served.folder.rglob(Path(__file__).name))


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_uploads_are_deleted_after_a_while_and_examples_are_not(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (page, uploads):
        monkeypatch.setattr(module, "UPLOAD_AGE", 0.1)
        monkeypatch.setattr(module, "SWEEP_EVERY", 0.1)
    with serving(picture) as served, httpx.Client(base_url=served.url, trust_env=False) as client:
        [thumbnail] = files_in(served.folder)
        Session(client, served).upload("street.png", png())
        # gradio keeps it and forgets it.
        client.post("/gradio_api/upload", files={"other": ("street.png", png())})
        deadline = time.monotonic() + 20
        while len(files := files_in(served.folder)) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert files == [thumbnail]
    assert not served.folder.exists()


def test_a_file_that_is_too_large_is_refused_and_not_kept(visitor: Session) -> None:
    content = jpeg_of_noise(400)
    assert len(content) > LIMITS.file_bytes
    answer = visitor.upload("large.jpg", content)
    assert answer.status_code == 413
    assert not list(visitor.served.folder.rglob("*large*"))


def test_the_browser_knows_the_largest_file(client: httpx.Client) -> None:
    assert client.get("/config").json()["max_file_size"] == LIMITS.file_bytes


def test_a_body_that_is_too_large_is_refused_whatever_it_is(client: httpx.Client) -> None:
    for path in ("queue/join", "run/predict", "upload", "cancel"):
        body = b" " * (LIMITS.file_bytes + 100_000)
        assert client.post(f"/gradio_api/{path}", content=body).status_code == 413


def test_a_body_that_does_not_end_is_cut_off(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    assert client.post("/gradio_api/queue/join", content=endless()).status_code == 413
    with suppress(httpx.TransportError):  # hung up on
        assert client.post("/gradio_api/upload", content=endless()).status_code >= 400


@pytest.mark.parametrize("body", [b"{", b"[" * 50_000, b"\xff"])
def test_a_body_that_is_no_json_is_refused(client: httpx.Client, body: bytes) -> None:
    assert client.post("/gradio_api/queue/join", content=body).status_code == 400


def test_only_so_many_pictures_may_wait(client: httpx.Client, served: Served) -> None:
    visitors = [Session(client, served) for _ in range(LIMITS.waiting + 2)]
    [path] = visitors[0].upload("street.png", png()).json()
    served.predictor.go_on.clear()
    try:
        calls = served.predictor.calls
        visitors[0].join(path)
        deadline = time.monotonic() + 20
        while served.predictor.calls == calls and time.monotonic() < deadline:
            time.sleep(0.02)
        taken = [each.join(path).status_code for each in visitors[1:]]
    finally:
        served.predictor.go_on.set()
    assert taken == [200] * LIMITS.waiting + [503]
    assert all(each.outcome()["success"] for each in visitors[:-1])


def test_folders_of_uploads_are_own_and_private(served: Served) -> None:
    assert served.folder.name.startswith("detr-kit-demo-")
    if os.name == "posix":
        assert served.folder.stat().st_mode & 0o077 == 0
