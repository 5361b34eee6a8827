"""What a browser asks a page for, without a browser."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.demo.conftest import Served


@dataclass
class Session:
    """One visitor of the page."""

    client: httpx.Client
    served: Served
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:10])

    def upload(self, name: str, content: bytes) -> httpx.Response:
        return self.client.post("/gradio_api/upload", files={"files": (name, content)})

    def join(self, path: str) -> httpx.Response:
        """Ask for the detections in an uploaded file at threshold 0.5."""
        file = {"path": path, "orig_name": path.rsplit("/", 1)[-1]}
        file["meta"] = {"_type": "gradio.FileData"}
        return self._post("queue/join", "upload", [file, 0.5, False])

    def call(self, event: str, component: str, data: list[Any]) -> httpx.Response:
        """Ask for an answer that waits in no queue."""
        return self._post("run/predict", event, data, component)

    def outcome(self) -> dict[str, Any]:
        """Wait for the answer to `join`."""
        address = f"/gradio_api/queue/data?session_hash={self.name}"
        with self.client.stream("GET", address, timeout=60) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    if message["msg"] == "process_completed":
                        return message
        raise AssertionError("no answer")

    def body(self, event: str, component: str | None, data: list[Any]) -> dict[str, Any]:
        """Return what a browser sends for an event of a component, of any if None."""
        number = self._number_of(event, component)
        return {"data": data, "fn_index": number, "session_hash": self.name}

    def _post(
        self, where: str, event: str, data: list[Any], component: str | None = None
    ) -> httpx.Response:
        return self.client.post(f"/gradio_api/{where}", json=self.body(event, component, data))

    def _number_of(self, event: str, component: str | None) -> int:
        config = self.client.get("/config").json()
        ids = {
            part["id"]
            for part in config["components"]
            if component in (None, part["props"].get("elem_id"))
        }
        for each in config["dependencies"]:
            if any(id_ in ids and name == event for id_, name in each["targets"]):
                return each["id"]
        raise AssertionError(f"nothing is done on {event} of {component}")
