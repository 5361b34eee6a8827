"""The curves of a run as SVG: what the rows of its record hold, and nothing else."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

from detr_kit.visualization.charts import Figure
from detr_kit.visualization.training_charts import training_figures


def row(epoch: int, *, ap: float | None = None, **train: float) -> dict[str, Any]:
    val = {} if ap is None else {"val": {"ap": ap, "ap50": ap + 0.1, "ap75": None}}
    return {"epoch": epoch, "lr": 1e-4, "train": {"class": 1 / epoch, **train}} | val


def lines(figure: Figure) -> list[str]:
    root = ElementTree.fromstring(figure.drawings[0])
    return [
        group.findtext("title", "") for group in root.iter("g") if group.find("title") is not None
    ]


def test_no_history_no_figures() -> None:
    assert training_figures([]) == []


def test_lines_are_those_that_the_rows_hold() -> None:
    history = [row(epoch, l1=0.1, ap=0.2 if epoch % 2 else None) for epoch in range(1, 8)]
    losses, total, validation, rate = training_figures(history)
    assert lines(losses) == ["class", "L1"]
    assert total.drawings == ()
    assert lines(validation) == ["AP", "AP50"]
    assert lines(rate) == ["learning rate"]
    # Epochs between two evaluations are no gap.
    paths = [
        path.attrib["d"] for path in ElementTree.fromstring(validation.drawings[0]).iter("path")
    ]
    assert paths[0].count("M") == 1
    assert losses.note == "At the end: class 0.1429, L1 0.1."


def test_gradients_and_matching_are_shown_where_they_are_recorded() -> None:
    history = [row(1, grad_norm=2.0), row(2, grad_norm=4.0)]
    history[1]["matching"] = {"query_changed": 0.25, "queries_never_matched": 3}
    *_, gradients, matching = training_figures(history)
    assert gradients.note == "At the end: before clipping 4."
    assert lines(matching) == ["objects found by another query than an epoch before"]
    assert len(training_figures([row(1, grad_norm=2.0)])) == 5
    for each in history:  # queries that are selected from the picture cannot be compared
        each["matching"] = {"query_changed": None, "queries_never_matched": 3}
    assert len(training_figures(history)) == 5


def test_low_ap_fills_its_chart() -> None:
    history = [row(1, ap=0.001), row(2, ap=0.003)]
    for each in history:
        del each["val"]["ap50"]
    root = ElementTree.fromstring(training_figures(history)[2].drawings[0])
    ticks = [text.text for text in root.iter("text") if "end" in text.attrib.get("class", "")]
    assert ticks == ["0", "0.001", "0.002", "0.003"]


def test_one_epoch_is_a_dot() -> None:
    losses = training_figures([row(1)])[0]
    assert len(list(ElementTree.fromstring(losses.drawings[0]).iter("circle"))) == 1


def test_what_is_no_finite_number_is_left_out() -> None:
    history = [
        row(1, l1=math.nan, giou=math.inf),
        {"epoch": 2, "lr": "high", "train": None, "val": {"ap": True}},
        {},
        {"epoch": 4, "train": {"class": 0.5}},
    ]
    figures = training_figures(history)
    assert lines(figures[0]) == ["class"]
    for figure in figures:
        for drawing in figure.drawings:
            assert not re.search(r"\b(nan|inf)\b", drawing)


def test_a_long_run_stays_small() -> None:
    history = [
        row(epoch, l1=math.sin(epoch), giou=math.cos(epoch), ap=0.5) for epoch in range(1, 10_001)
    ]
    assert (
        sum(len(drawing) for figure in training_figures(history) for drawing in figure.drawings)
        < 60_000
    )
