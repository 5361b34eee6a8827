"""Models of the Hugging Face hub: from its cache without network, from a server made here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.convert import convert
from detr_kit.checkpoints.hub import fetch_model
from detr_kit.checkpoints.sources import load_detector, open_checkpoint
from detr_kit.errors import DetrKitError

COMMIT, OLDER = "a" * 40, "b" * 40
NAME = "owner/tiny-yolos"


@pytest.fixture(params=[False, True], ids=["online", "offline"])
def cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty cache, whether or not HF_HUB_OFFLINE says that there is no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # before each of several retries
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()  # an open one may know another network
    yield tmp_path / "cache"
    huggingface_hub.close_session()


online = pytest.mark.parametrize("cache", [False], indirect=True)


@pytest.fixture
def folder(tmp_path: Path, save_own: Callable[..., Path]) -> Path:
    """A Hugging Face folder with a small YOLOS."""
    convert(save_own("yolos"), tmp_path / "folder", form="huggingface")
    return tmp_path / "folder"


def shard(folder: Path) -> None:
    """Spread the weights of a folder over two files and an index."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in names}, folder / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def put_into_cache(
    cache: Path, folder: Path, *left_out: str, commit: str = COMMIT, ref: str | None = "main"
) -> None:
    """Lay files out as the hub's client does: snapshots of links to blobs, and a named commit."""
    storage = cache / f"models--{NAME.replace('/', '--')}"
    snapshot = storage / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (storage / "blobs").mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.name in left_out:
            continue
        blob = storage / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    if ref is not None:
        (storage / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (storage / "refs" / ref).write_text(commit)


@pytest.mark.usefixtures("no_network")
class TestWithoutNetwork:
    @pytest.mark.parametrize("change", [lambda _: None, shard, as_bin])
    def test_what_is_in_the_cache_loads(
        self, cache: Path, folder: Path, change: Callable[[Path], None]
    ) -> None:
        expected, _ = load_detector(folder)
        change(folder)
        put_into_cache(cache, folder)
        shutil.rmtree(folder)
        for name in (NAME, f"{NAME}@main", f"{NAME}@{COMMIT}"):
            model, spec = load_detector(name)
            assert spec.origin == f"{NAME}@{COMMIT}"
            assert spec.categories.names == ("cat", "dog", "naïve owl")
            for key, tensor in expected.state_dict().items():
                assert torch.equal(model.state_dict()[key], tensor)

    def test_revisions_are_kept_apart(self, cache: Path, folder: Path) -> None:
        put_into_cache(cache, folder)
        config = json.loads((folder / "config.json").read_text())
        config["id2label"]["0"] = "lynx"
        (folder / "config.json").write_text(json.dumps(config))
        put_into_cache(cache, folder, commit=OLDER, ref="v1.0")
        first = {
            revision: open_checkpoint(NAME + revision).spec.categories.names[0]
            for revision in ("", "@main", f"@{COMMIT}", "@v1.0", f"@{OLDER}")
        }
        assert list(first.values()) == ["cat", "cat", "cat", "lynx", "lynx"]

    @pytest.mark.parametrize("revision", ["", "@v1.0"])
    def test_what_is_not_there_is_one_line_with_the_command(
        self, cache: Path, revision: str
    ) -> None:
        command = f"hf download {NAME}" + revision.replace("@", " --revision ")
        line = told(NAME + revision)
        assert line.startswith(
            f"{NAME}{revision}: no such file or folder here, and as a model of the Hugging Face "
            "hub its config.json is not in the cache and cannot be fetched ("
        )
        assert line.endswith(f"); with network, fetch it by `{command}`, or give a local folder")
        assert not cache.exists() or not list(cache.rglob("*.json"))

    @pytest.mark.parametrize(
        "lost", ["model.safetensors", "preprocessor_config.json", "config.json"]
    )
    def test_a_lost_file_is_named(self, cache: Path, folder: Path, lost: str) -> None:
        put_into_cache(cache, folder, lost)
        assert f"its {lost} is not in the cache" in told(NAME)

    def test_a_lost_shard_is_named(self, cache: Path, folder: Path) -> None:
        shard(folder)
        put_into_cache(cache, folder, "model-00002-of-00002.safetensors")
        assert "its model-00002-of-00002.safetensors is not in the cache" in told(NAME)

    def test_files_known_not_to_exist_are_not_asked_for(self, cache: Path, folder: Path) -> None:
        unknown = ("preprocessor_config.json", "model.safetensors", "model.safetensors.index.json")
        as_bin(folder)
        put_into_cache(cache, folder, *unknown, "pytorch_model.bin")
        mark = cache / "models--owner--tiny-yolos/.no_exist" / COMMIT
        mark.mkdir(parents=True)
        for name in unknown:
            (mark / name).touch()
        assert "its pytorch_model.bin is not in the cache" in told(NAME)
        shutil.copy(folder / "pytorch_model.bin", mark.parents[1] / "snapshots" / COMMIT)
        opened = open_checkpoint(NAME)
        assert opened.notes == (
            "no preprocessor_config.json: the yolos processor's defaults are used",
        )

    @pytest.mark.parametrize("name", ["a--b/c", "o/x..y", "o/.x", "o/" + "n" * 200])
    def test_names_that_the_hub_does_not_allow(self, cache: Path, name: str) -> None:
        assert told(name).startswith(f"{name}: no such file or folder here, and the Hugging Face ")

    def test_categories_are_the_models_own(self, cache: Path, folder: Path) -> None:
        put_into_cache(cache, folder)
        with pytest.raises(DetrKitError, match="it names its categories itself"):
            open_checkpoint(NAME, categories={0: "owl"})


def told(name: str) -> str:
    with pytest.raises(DetrKitError) as caught:
        open_checkpoint(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Hub:
    """A server with one model, which answers as the hub does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path.rsplit('/', 1)[-1]}")
                status, headers, body = hub.answer(unquote(self.path))
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.rpartition("/")
        if name != NAME:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        known = {"X-Repo-Commit": COMMIT}
        if not (self.folder / file).is_file():
            return 404, {**known, "X-Error-Code": "EntryNotFound"}, b""
        body = (self.folder / file).read_bytes()
        return 200, {**known, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body


@pytest.fixture
def hub(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(folder)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("hf_hub_download", "hf_hub_url"):
        asked_here = partial(getattr(huggingface_hub, name), endpoint=hub.url)
        monkeypatch.setattr(huggingface_hub, name, asked_here)
    yield hub
    hub.stop()


@online
class TestAgainstAServer:
    @pytest.mark.parametrize("change", [lambda _: None, shard, as_bin])
    def test_a_model_is_fetched_once(
        self, hub: Hub, cache: Path, change: Callable[[Path], None]
    ) -> None:
        expected, _ = load_detector(hub.folder)
        change(hub.folder)
        model, _ = load_detector(NAME)
        for key, tensor in expected.state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor)
        files = sorted(path.name for path in hub.folder.iterdir())
        assert sorted(asked[4:] for asked in hub.asked if asked.startswith("GET ")) == files
        assert sorted(path.name for path in fetch_model(NAME).iterdir()) == files
        hub.asked.clear()
        load_detector(NAME)
        # Whether `main` has moved is asked; nothing is fetched.
        assert hub.asked in ([], ["HEAD config.json"])

    def test_what_the_server_has_not_is_not_an_error(self, hub: Hub, cache: Path) -> None:
        (hub.folder / "preprocessor_config.json").unlink()
        assert open_checkpoint(NAME).notes[0].startswith("no preprocessor_config.json: ")
        hub.asked.clear()
        open_checkpoint(f"{NAME}@{COMMIT}")
        assert hub.asked == []  # it is remembered that there is none

    @pytest.mark.parametrize(
        ("name", "lost", "reason"),
        [
            ("owner/other", "", "the Hugging Face hub does not give its config.json: "),
            (f"{NAME}@v9", "", "the Hugging Face hub does not give its config.json: "),
            (NAME, "config.json", "this model of the hub has no config.json"),
            (NAME, "model.safetensors", "has none of model.safetensors, model.safetensors.index"),
        ],
    )
    def test_what_the_server_refuses_is_one_line(
        self, hub: Hub, cache: Path, name: str, lost: str, reason: str
    ) -> None:
        if lost:
            (hub.folder / lost).unlink()
        line = told(name)
        assert line.startswith(f"{name}: ")
        assert reason in line
        assert len(line) < 500

    def test_an_index_that_leads_elsewhere_is_refused(self, hub: Hub, cache: Path) -> None:
        shard(hub.folder)
        index = hub.folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "../../other/model.safetensors"}}))
        assert "it lists files outside its folder" in told(NAME)
        assert not any("other" in asked for asked in hub.asked)

    def test_a_fetched_model_needs_no_server(self, hub: Hub, cache: Path) -> None:
        load_detector(NAME)
        hub.asked.clear()
        hub.stop()
        load_detector(NAME)
        assert hub.asked == []
        assert "its config.json is not in the cache" in told("owner/other")


def test_a_name_and_a_folder_are_told_apart(
    cache: Path, folder: Path, no_network: None, save_own: Callable[..., Path]
) -> None:
    put_into_cache(cache, folder)
    assert open_checkpoint(NAME).kind == "Hugging Face YOLOS"
    with pytest.raises(DetrKitError, match="does not exist"):
        open_checkpoint(Path(NAME))
    # A folder of that name comes first.
    table = CategoryTable((0,), ("own",))
    save_own("yolos", NAME, table=table)
    assert open_checkpoint(NAME).spec.categories == table
    shutil.rmtree(NAME)
    # With the owner's folder here, the name is more likely a mistyped path.
    with pytest.raises(DetrKitError, match="does not exist"):
        open_checkpoint(NAME)
