"""Pages of data set checks, written for tests and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from detr_kit.data.checks.findings import Case, CheckReport, Findings
from detr_kit.data.coco_file import CocoColumns, read_columns
from detr_kit.visualization.check_report import write_check_report

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(HTMLParser):
    """Collects tags and texts, and sees to it that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1:] != ["style"]:
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def drawings(self) -> list[ElementTree.Element]:
        return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", self.raw)]

    def drawing(self, label: str) -> ElementTree.Element:
        return next(svg for svg in self.drawings() if svg.get("aria-label", "").startswith(label))

    def counts(self, label: str) -> list[int]:
        """Return the counts that the tooltips of a chart tell, less those of nothing."""
        titles = (part.text or "" for part in self.drawing(label).iter("title"))
        found = (re.search(r": ([\d,]+) \w+", title) for title in titles)
        counts = (int(match[1].replace(",", "")) for match in found if match)
        return [count for count in counts if count]


def coco(path: Path, images: list[dict], annotations: list[dict], names: Sequence[str]) -> Path:
    categories = [{"id": 3 * place, "name": name} for place, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def image(id_: int, name: str, width: int = 64, height: int = 48) -> dict:
    return {"id": id_, "file_name": name, "width": width, "height": height}


def annotation(image_id: int, category: int, box_xywh: list[float]) -> dict:
    return {"id": 1, "image_id": image_id, "category_id": 3 * category, "bbox": box_xywh}


def picture(path: Path, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def counts_of(columns: CocoColumns | None) -> dict[str, int]:
    if columns is None:
        return {"images": 0, "objects": 0, "categories": 0}
    return {
        "images": len(columns.image_ids),
        "objects": int((columns.iscrowd != 1).sum()),
        "categories": len(columns.category_ids),
    }


def write(
    out: Path,
    splits: Sequence[tuple[Path, Path | None]],
    faults: Sequence[tuple[str, Sequence[str], int]] = (),
) -> Page:
    """Write the page of readable files, all with the same faults (kind, cases, count)."""
    read = [(read_columns(path), folder) for path, folder in splits]
    listed = []
    for path, _ in splits:
        findings = Findings(path)
        for kind, texts, count in faults:
            findings.add(kind, map(Case, texts), count)
        listed += findings.listed()
    paths = tuple(path for path, _ in splits)
    report = CheckReport(paths, tuple(counts_of(columns) for columns, _ in read), tuple(listed))
    write_check_report(report, read, out)
    return Page(out.read_text(encoding="utf-8"))


def small_split(tmp_path: Path) -> tuple[Path, Path]:
    """Three pictures: with objects, with a tiny one, and without any."""
    folder = tmp_path / "images"
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / name)
    path = coco(
        tmp_path / "train.json",
        [image(1, "a.png"), image(2, "b.png"), image(3, "c.png")],
        [
            annotation(1, 0, [2, 3, 30, 20]),
            annotation(1, 1, [10, 10, 40, 10]),
            annotation(1, 1, [50, 30, 8, 16]),
            annotation(2, 1, [20, 20, 2, 2]),
        ],
        ["cat", "dog", "cow"],
    )
    return path, folder
