"""Scoring, comparing and reporting, as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRUTH = "sample/annotations/val.json"


@pytest.fixture
def results(workplace: Path) -> Path:
    """The true boxes of the validation split without the first; the next one is half as wide."""
    rows = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.04}
        for row in json.loads(Path(TRUTH).read_text())["annotations"][1:]
    ]
    rows[0]["bbox"][2] /= 2
    rows[0]["score"] = 0.9
    path = Path("found.json")
    path.write_text(json.dumps(rows))
    return path


def test_score_prints_figures_classes_and_the_interval(results: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("score", str(results), "--annotations", TRUTH, "--json", "figures.json")
    assert (code, err) == (0, "")
    for text in ("AP50", "AR 100", "95 % interval", "class", "scored in"):
        assert text in out
    figures = json.loads(Path("figures.json").read_text())
    assert figures["analysis"]["thresholds"]["classes"].keys() == figures["per_class"].keys()
    assert figures["analysis"]["errors"]["counts"]["missed"] >= 1
    low, high = figures["ap_interval"]
    assert 0 <= low <= figures["ap"] <= high <= 1
    known = [value for value in figures["per_class"].values() if value is not None]
    assert sum(known) / len(known) == pytest.approx(figures["ap"])


def test_both_backends_print_the_same(results: Path, run) -> None:  # type: ignore[no-untyped-def]
    asked = ("score", str(results), "--annotations", TRUTH, "--no-interval", "--json")
    assert run(*asked, "one.json")[0] == 0
    assert run(*asked, "other.json", "--backend", "pycocotools")[0] == 0
    one, other = (json.loads(Path(name).read_text()) for name in ("one.json", "other.json"))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert one["ap_interval"] is None


def test_score_with_other_options(results: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(
        "score", str(results), "--annotations", TRUTH, "--no-interval", "--json", "figures.json",
        "--iou", "0.3", "--iou", "0.5", "--area", "tiny=0:256", "--area", "big=9216:",
        "--max-detections", "300",
        "--class-agnostic",
    )  # fmt: skip
    assert code == 0
    for text in (
        "class-agnostic; IoU 0.3, 0.5",
        "AP30",
        "AP50",
        "AP tiny",
        "area below 16²",
        "AR 300",
        "all classes",
    ):
        assert text in out
    figures = json.loads(Path("figures.json").read_text())
    assert figures["others"]["ap30"] >= figures["ap50"]
    assert figures["ap"] == pytest.approx((figures["others"]["ap30"] + figures["ap50"]) / 2)
    assert figures["ap_small"] is None
    assert figures["options"]["areas"] == {
        "all": [0, 1e10],
        "tiny": [0, 256],
        "big": [9216, 1e10],
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--iou", "50"), "IoU thresholds must lie in (0, 1], got [50.0]"),
        (("--area", "tiny"), "--area tiny: expected NAME=LEAST:MOST"),
        (("--area", "tiny=9:3"), "area range 'tiny' must be 0 <= least < most, got 9 and 3"),
        (("--area", "=0:3"), "--area =0:3: expected NAME=LEAST:MOST"),
        (("--area", "a=0:3", "--area", "a=3:4"), "--area: two ranges have one name"),
        (("--json", "found.json"), "--json found.json: it is a file to read; choose another"),
        (("--html", f"./{TRUTH}"), f"--html {TRUTH}: it is a file to read"),
        (("--json", "new", "--html", "./new"), "--html new: another output has that name too"),
        (("--html", "sample"), "--html sample: it is a folder; name a file to write"),
        (("--images", "sample/val"), "--images sample/val: pictures are for the report"),
    ],
)
def test_options_that_mean_nothing(results: Path, run, option, message: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("score", str(results), "--annotations", TRUTH, *option)
    assert code == 1
    assert err.startswith("detr-kit: ")
    assert message in err
    assert err.count("\n") == 1


def test_compare_tells_the_better_one(results: Path, run) -> None:  # type: ignore[no-untyped-def]
    rows = json.loads(results.read_text())
    Path("other.json").write_text(json.dumps(rows[1:]))
    code, out, _ = run(
        "compare", "other.json", str(results), "--annotations", TRUTH, "--json", "compared.json"
    )
    assert code == 0
    assert "AP" in out
    compared = json.loads(Path("compared.json").read_text())
    assert compared["difference"] == pytest.approx(compared["b"]["ap"] - compared["a"]["ap"])


def test_score_writes_a_report(results: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, _, _ = run(
        "score", str(results), "--annotations", TRUTH, "--images", "sample/val",
        "--html", "out/report.html",
    )  # fmt: skip
    assert code == 0
    page = Path("out/report.html").read_text()
    assert "found.json" in page
    assert "data:image/jpeg" in page


def test_training_ends_with_a_report_that_can_be_written_again(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("train", "run.yaml", "output=runs/first")
    assert code == 0
    assert "report: runs/first/report.html" in (out + err).replace("\n", "")
    folder = Path("runs/first")
    written = (folder / "report.html").read_bytes()
    assert json.loads((folder / "results.json").read_text())
    (folder / "report.html").unlink()
    assert run("report", "runs/first")[0] == 0
    assert (folder / "report.html").read_bytes() == written
    code, out, _ = run("report", "runs/first", "--out", "elsewhere.html")
    assert "written to elsewhere.html" in out
    assert Path("elsewhere.html").read_bytes() == written


def test_no_report_of_what_is_no_run(workplace: Path, run) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("report", "sample")
    assert code == 1
    assert "config.yaml" in err


def test_scoring_needs_no_torch(results: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['detr-kit', 'score', {str(results)!r}, '--annotations', {TRUTH!r},"
        " '--html', 'report.html']\n"
        "from detr_kit.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code, exit.code\n"
        "print('torch' in sys.modules)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "False"
