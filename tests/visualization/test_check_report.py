"""The page of a data set check: complete in itself, true to the data, safe with any text."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detr_kit.data.checks.findings import KINDS, MAX_CASES, Case, CheckReport, Findings
from detr_kit.data.coco_file import read_columns
from detr_kit.errors import DetrKitError
from detr_kit.visualization import page as pages
from detr_kit.visualization.check_report import write_check_report
from detr_kit.visualization.page import MAX_BYTES
from tests.visualization.report_pages import (
    Page,
    annotation,
    coco,
    counts_of,
    image,
    picture,
    small_split,
    write,
)

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x00\u202e"


def test_the_page_is_complete_in_itself(tmp_path: Path) -> None:
    page = write(tmp_path / "out.html", [small_split(tmp_path)], [("overshoot", ["a", "b"], 2)])
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "srcset", "xlink:href", "action", "background", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name)
    assert not re.search(r"https?://|@import|url\(", page.raw)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert (policy or "").startswith("default-src 'none'; img-src data:;")


def test_links_lead_to_their_section(tmp_path: Path) -> None:
    one, folder = small_split(tmp_path / "one")
    two, _ = small_split(tmp_path / "two")
    page = write(tmp_path / "out.html", [(one, folder), (two, None)])
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert links == ["#file-1", "#file-2"]
    assert ids == ["file-1", "file-2"]
    # Files of one name are told apart by their folders.
    assert "one/train.json" in page.texts
    assert "two/train.json" in page.texts


def test_the_head_line_has_the_counts(tmp_path: Path) -> None:
    page = write(tmp_path / "out.html", [small_split(tmp_path)])
    for line in (
        "images 3",
        "objects 4",
        "categories 3",
        "images without objects 1",
        "objects per image, median 1",
        "objects per image, most 3",
    ):
        assert line in page.text
    assert "crowd" not in page.text
    assert "No faults found." in page.texts


def test_faults_are_listed_the_gravest_first(tmp_path: Path) -> None:
    texts = [f"annotation {place}: too wide" for place in range(MAX_CASES)]
    faults = [
        ("overshoot", texts, 1234),
        ("no_objects", ["image 3: it has no objects"], 1),
        ("file_missing", ["image 1: gone.jpg", "image 2: gone too.jpg"], 2),
    ]
    page = write(tmp_path / "out.html", [small_split(tmp_path)], faults)
    assert page.texts.index("file_missing") < page.texts.index("overshoot")
    assert page.texts.index("overshoot") < page.texts.index("no_objects")
    for text in ("2 errors", "1,234 warnings", "1 note", "1,234", KINDS["overshoot"][1], *texts):
        assert text in page.texts
    assert [text for text in page.texts if text.endswith("case") or text.endswith("cases")] == [
        "cases",
        "first cases",
        "the case",
    ]
    assert "No faults found." not in page.texts


def test_the_charts_tell_what_numpy_counts(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    boxes = np.concatenate(
        [draw.uniform(0, 400, (500, 2)), np.exp(draw.normal(3.5, 1, (500, 2)))], axis=1
    )
    image_ids, categories = draw.integers(1, 60, 500), draw.integers(0, 7, 500)
    path = coco(
        tmp_path / "train.json",
        [image(id_, f"{id_}.jpg", 640, 480) for id_ in range(1, 81)],
        [
            annotation(int(id_), int(category), box)
            for id_, category, box in zip(image_ids, categories, boxes.tolist(), strict=True)
        ],
        [f"kind {place}" for place in range(8)],
    )
    page = write(tmp_path / "out.html", [(path, None)])
    of_category = np.sort(np.bincount(categories))[::-1]
    assert page.counts("Objects of 8 categories") == of_category.tolist()
    sides = np.sqrt(boxes[:, 2] * boxes[:, 3])
    label = page.drawing("Box sizes:").attrib["aria-label"]
    small, large = 100 * (sides < 32).mean(), 100 * (sides > 96).mean()
    assert f"small {small:.0f} %" in label
    assert f"large {large:.0f} %" in label
    drawn = page.counts("Box sizes:")
    low = np.floor(np.log2(np.quantile(sides, 0.001)))
    expected = np.bincount(np.floor((np.log2(sides) - low).clip(0) * 4).astype(int))
    assert drawn == expected[expected > 0].tolist()
    clipped = boxes[:, 2:].clip(None, [640, 480] - boxes[:, :2])
    inside = (clipped > 0).all(axis=1)
    shares = np.sqrt(clipped[inside].prod(axis=1) / (640 * 480))
    expected = np.histogram(shares, 25, (0, 1))[0]
    assert page.counts("Box sizes in the image") == expected[expected > 0].tolist()
    logs = np.log2(boxes[:, 2] / boxes[:, 3]).clip(-4, 4)
    expected = np.histogram(logs, 32, (-4, 4))[0]
    assert page.counts("Aspect ratios") == expected[expected > 0].tolist()
    expected = np.bincount(np.bincount(image_ids, minlength=81)[1:])
    assert page.counts("Objects in an image") == expected[expected > 0].tolist()


@pytest.mark.parametrize(("num_names", "num_bars"), [(3, 3), (80, 80), (81, 60), (1200, 60)])
def test_of_many_categories_the_ends_are_shown(
    tmp_path: Path, num_names: int, num_bars: int
) -> None:
    names = [f"kind {place} {'long ' * place}" for place in range(num_names)]
    objects = [annotation(1, place, [0, 0, 9, 9]) for place in range(num_names - 1)]
    path = coco(tmp_path / "train.json", [image(1, "a.jpg")], objects, names)
    page = write(tmp_path / "out.html", [(path, None)])
    charts = [d for d in page.drawings() if d.attrib["aria-label"].startswith("Objects of")]
    assert sum(len(list(chart.iter("title"))) for chart in charts) == num_bars
    assert ("between them are not shown" in page.text) == (num_bars < num_names)
    assert f"the {num_names - 60:,} between them" in page.text or num_bars == num_names
    assert "Without objects: 1 category." in page.text
    last = [part.text for part in charts[-1].iter("text")][-1]
    assert last == "0"


def test_texts_of_the_files_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    picture(folder / "<script>alert(3).png")
    path = coco(
        tmp_path / "<script>alert(4).json",
        [image(1, "<script>alert(3).png"), image(2, NASTY)],
        [annotation(1, 0, [5, 5, 30, 30]), annotation(1, 9, [5, 5, 9, 9])],
        [NASTY, "</style></title></svg>"],
    )
    out = tmp_path / "out.html"
    page = write(out, [(path, folder), (path, folder)], [("not_coco", [f"{path}: {NASTY}"], 1)])
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert "alert(3)" in page.text
    assert "alert(4)" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "\x00" not in page.raw
    assert "\u202e" not in page.raw


@pytest.mark.parametrize(
    ("images", "annotations", "names"),
    [
        ([], [], []),
        ([image(1, "a.png")], [], []),
        ([image(1, "a.png")], [], ["cat"]),
        ([], [annotation(1, 0, [0, 0, 1, 1])], []),
        (
            [image(1, "a.png", 0, 0), image(1, "a.png", -4, 9)],
            [annotation(1, 0, [0, 0, 1, 1])],
            [""],
        ),
        (
            [image(1, "a.png"), image(2, "")],
            [
                annotation(1, 7, [0, 0, float("nan"), 1]),
                annotation(1, 0, [5, 5, -1, 4]),
                annotation(1, 0, [900, 900, 4, 4]),
                annotation(1, 0, [-9, -9, 1e300, 1e300]),
                annotation(1, 0, [0.1, 0.1, 1e-9, 1e-9]),
                annotation(2, 0, [1, 1, 2, 2]),
                annotation(3, 0, [1, 1, 2, 2]),
                {"id": 2, "image_id": 1, "category_id": 0},
                {**annotation(1, 0, [1, 1, 20, 20]), "iscrowd": 1},
            ],
            ["cat", "cat"],
        ),
    ],
)
def test_odd_files(
    tmp_path: Path, images: list[dict], annotations: list[dict], names: list[str]
) -> None:
    picture(tmp_path / "images" / "a.png")
    path = coco(tmp_path / "train.json", images, annotations, names)
    page = write(tmp_path / "out.html", [(path, tmp_path / "images"), (path, None)])
    assert not re.search(r"\b(nan|inf|None)\b", page.raw.replace("None of", ""))
    crowd = any(row.get("iscrowd") for row in annotations)
    assert page.text.count("crowd regions 1") == (2 if crowd else 0)


def test_a_file_that_cannot_be_read_has_its_fault_only(tmp_path: Path) -> None:
    good, folder = small_split(tmp_path)
    bad = tmp_path / "bad.json"
    findings = Findings(bad)
    findings.add("not_coco", [Case("bad.json: not a json file")])
    columns = read_columns(good)
    report = CheckReport((bad, good), (counts_of(None), counts_of(columns)), findings.listed())
    out = tmp_path / "out.html"
    write_check_report(report, [(None, None), (columns, folder)], out)
    page = Page(out.read_text(encoding="utf-8"))
    assert "bad.json: not a json file" in page.texts
    assert page.text.count("could not be read, so there is nothing more") == 1
    assert len([1 for tag, _ in page.tags if tag == "section"]) == 2


def test_the_page_stays_small(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    names = [f"{place}.png" for place in range(13)]
    for name in names:
        picture(folder / name, 400, 400)
    images = [image(i, name, 400, 400) for i, name in enumerate(names)]
    draw = np.random.default_rng(2)
    boxes = np.concatenate(
        [draw.uniform(0, 350, (9000, 2)), draw.uniform(1, 99, (9000, 2))], axis=1
    )
    objects = [
        annotation(i % 13, int(draw.integers(0, 1200)), box) for i, box in enumerate(boxes.tolist())
    ]
    long = "<&>\"'é😀" * 20_000
    path = coco(tmp_path / "train.json", images, objects, [f"{i}{long[:500]}" for i in range(1200)])
    faults = [(kind, [long] * MAX_CASES, 10**6) for kind in KINDS]
    page = write(tmp_path / "out.html", [(path, folder)] * 3, faults)
    assert len(page.raw.encode()) <= MAX_BYTES
    assert "a bbox holds a number that is not finite" in page.texts
    assert "Shortened to keep the page small" in page.text
    assert [d for d in page.drawings() if "picture" in d.attrib["class"]]


def test_the_same_data_give_the_same_page(tmp_path: Path) -> None:
    split = small_split(tmp_path)
    assert write(tmp_path / "1.html", [split]).raw == write(tmp_path / "2.html", [split]).raw


def test_an_old_page_stays_where_the_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = small_split(tmp_path)
    out = tmp_path / "new" / "out.html"
    write(out, [split])
    before = out.read_bytes()
    monkeypatch.setattr(pages, "render", lambda *_, **__: "no bytes")
    with pytest.raises(TypeError):
        write(out, [split])
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["out.html"]


def test_the_annotation_file_is_not_written_over(tmp_path: Path) -> None:
    split = small_split(tmp_path)
    before = split[0].read_bytes()
    (tmp_path / "link.html").symlink_to(split[0])
    for out in (split[0], tmp_path / "link.html"):
        with pytest.raises(DetrKitError, match="it is a file that was checked"):
            write(out, [split])
    assert split[0].read_bytes() == before


def test_the_page_is_written_without_torch() -> None:
    code = "import detr_kit.visualization.check_report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    coco_mini = shared_data / "coco_mini"
    splits = [
        (coco_mini / "annotations" / f"instances_{split}.json", coco_mini / split)
        for split in ("train2017", "val2017")
    ]
    page = write(tmp_path / "out.html", splits)
    pictures = [d for d in page.drawings() if "picture" in d.attrib["class"]]
    assert len(pictures) == 24
    assert page.text.count("crowd regions") == 2
    assert "cannot be shown" not in page.text
    assert "Shortened" not in page.text
    assert len(page.raw.encode()) < MAX_BYTES
    columns = read_columns(splits[0][0])
    expected = np.bincount(columns.category_id_of[columns.iscrowd != 1], minlength=91)
    drawn = [
        int((text.text or "").replace(",", ""))
        for drawing in page.drawings()[:3]
        for text in drawing.iter("text")
        if text.get("class") in ("soft", "zero")
    ]
    assert drawn == sorted(expected[columns.category_ids].tolist(), reverse=True)
