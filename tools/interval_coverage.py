"""Measure how often the interval of AP holds the true AP, and how often p-values cry wolf.

    python tools/interval_coverage.py [--sets N] [--laws NAME ...] [--kinds]

Data sets are drawn by laws of known kind, matched and scored as any other. Pictures differ: some
are hard, where objects are missed more often and wrong boxes are more; classes are frequent or
rare; an easier object gets a better box and a higher score. The true AP is that of 40,000 pictures
of the same law, drawn 6 times.

1. Of each law, N data sets: how often `ap_interval` holds the true AP, with the margin that chance
   leaves (95 %), how often it lies below or above it, and how wide it is. `--kinds` adds intervals
   of other kinds, from the same resamples (Efron & Tibshirani 1993, chapters 13 and 14).
2. Of some laws, N data sets with the results of two detectors that are equally good:
   how often `compare_results` has p < 0.05 though neither is better.

Takes three minutes on one core, with `--kinds` four.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.data.coco_file import PackedText
from detr_kit.errors import DetrKitWarning
from detr_kit.evaluation.bootstrap import (
    LEVEL,
    ap_interval,
    resampled_precisions,
)
from detr_kit.evaluation.coco import Evaluation, evaluation_of
from detr_kit.evaluation.comparison import compare_results
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.options import ScoringOptions
from detr_kit.evaluation.weighted_precision import WeightedPrecision

SIZE_HW = (480, 640)
OPTIONS = ScoringOptions(areas={}, max_detections=(100,))
TRUE_IMAGES, TRUE_DRAWS = 40_000, 6


@dataclass(frozen=True)
class Law:
    """How pictures, objects and detections come about.

    `shares` are the chances that a picture shows a class; `skill` is the logit of finding an object
    of middling difficulty; `shake` is how far boxes are off, in shares of their sides; `wrong` is
    the number of wrong boxes a picture; `separation` is how well scores tell right from wrong.
    """

    num_images: int
    shares: tuple[float, ...]
    skill: float = 1.0
    shake: float = 0.08
    wrong: float = 4.0
    separation: float = 1.5


LAWS = {
    "usual": Law(120, (0.6, 0.4, 0.25, 0.15)),
    "few-pictures": Law(30, (0.6, 0.4, 0.2)),
    "rare-classes": Law(120, (0.5, 0.2, 0.08, 0.04, 0.02, 0.02)),
    "good-detector": Law(120, (0.6, 0.4, 0.25, 0.15), 3.0, 0.03, 2.0, 3.0),
    "poor-detector": Law(120, (0.6, 0.4, 0.25, 0.15), -0.5, 0.12, 8.0, 0.8),
    "many-classes": Law(240, tuple(np.geomspace(0.5, 0.03, 12).tolist())),
}
COMPARED = ("usual", "few-pictures", "rare-classes", "good-detector")


def drawn_truth(
    rng: np.random.Generator, law: Law, num_images: int
) -> tuple[GroundTruth, np.ndarray]:
    """Return objects, and how hard each picture is (I,)."""
    num_classes = len(law.shares)
    shows = rng.random((num_images, num_classes)) < law.shares
    counts = shows * (1 + rng.poisson(1.5, (num_images, num_classes)))
    rows, columns = np.nonzero(counts)
    counts = counts[rows, columns]
    image_rows, class_columns = rows.repeat(counts), columns.repeat(counts)
    boxes_xywh = drawn_boxes(rng, len(image_rows))
    ids = range(1, num_classes + 1)
    truth = GroundTruth(
        path=Path("drawn"),
        categories=CategoryTable(tuple(ids), tuple(f"class {id_}" for id_ in ids)),
        image_ids=np.arange(num_images),
        file_names=PackedText.pack([b""] * num_images),
        sizes_hw=np.tile(np.array(SIZE_HW, np.int32), (num_images, 1)),
        image_rows=image_rows.astype(np.int32),
        class_columns=class_columns.astype(np.int32),
        boxes_xywh=boxes_xywh,
        areas=boxes_xywh[:, 2] * boxes_xywh[:, 3],
        is_crowd=np.zeros(len(boxes_xywh), dtype=np.bool_),
        annotation_ids=np.arange(len(boxes_xywh)),
    )
    return truth, rng.normal(size=num_images)


def drawn_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.normal(4.2, 0.6, (count, 2)))
    return np.concatenate([rng.random((count, 2)) * SIZE_HW[::-1], sides], axis=1)


def drawn_results(
    rng: np.random.Generator, law: Law, truth: GroundTruth, hardness: np.ndarray
) -> ResultColumns:
    """Return right boxes, some doubled or of another class, and wrong ones."""
    ease = law.skill - 0.8 * hardness[truth.image_rows] + rng.normal(size=truth.num_objects)
    is_found = rng.random(truth.num_objects) < expit(ease)
    times = is_found.astype(np.int64) + (rng.random(truth.num_objects) < 0.1)
    objects = np.arange(truth.num_objects).repeat(times)
    ease, boxes_xywh = ease[objects], truth.boxes_xywh[objects]
    off = law.shake * np.exp(-0.3 * (ease - 1))[:, None] * np.tile(boxes_xywh[:, 2:], 2)
    boxes_xywh = boxes_xywh + off * rng.normal(size=boxes_xywh.shape)
    boxes_xywh[:, 2:] = np.maximum(boxes_xywh[:, 2:], 1)
    scores = law.separation * (ease + 1) / 2 - 0.5 + rng.normal(size=len(objects))
    classes = truth.class_columns[objects].astype(np.int64)
    confused = rng.random(len(objects)) < 0.05
    classes[confused] = rng.integers(len(law.shares), size=confused.sum())
    wrong_images = np.arange(truth.num_images).repeat(
        rng.poisson(law.wrong * np.exp(hardness / 2 - 0.125))
    )
    likely = np.array(law.shares) + 0.02
    count = len(wrong_images)
    wrong_classes = rng.choice(len(law.shares), count, p=likely / likely.sum())
    wrong_scores = 1.2 * rng.normal(size=count) - law.separation
    return ResultColumns(
        "drawn",
        np.concatenate([truth.image_rows[objects], wrong_images]).astype(np.int64),
        np.concatenate([classes, wrong_classes]) + 1,
        np.concatenate([boxes_xywh, drawn_boxes(rng, count)]),
        expit(np.concatenate([scores, wrong_scores])),
    )


def expit(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def drawn_evaluation(rng: np.random.Generator, law: Law, num_images: int) -> Evaluation:
    truth, hardness = drawn_truth(rng, law, num_images)
    return evaluation_of(drawn_results(rng, law, truth, hardness), truth, options=OPTIONS)


def true_ap(rng: np.random.Generator, law: Law) -> float:
    return float(
        np.mean([ap_of(drawn_evaluation(rng, law, TRUE_IMAGES)) for _ in range(TRUE_DRAWS)])
    )


def ap_of(evaluation: Evaluation) -> float:
    assert evaluation.metrics.ap is not None
    return evaluation.metrics.ap


def other_intervals(evaluation: Evaluation, resamples: int) -> dict[str, tuple[float, float]]:
    """Return the percentile, basic and BC intervals of the mean over classes."""
    ap = ap_of(evaluation)
    (drawn,) = resampled_precisions([WeightedPrecision(evaluation.table)], resamples, 0)
    means = np.nanmean(drawn[~np.isnan(drawn).all(axis=1)], axis=1)
    normal, tail = NormalDist(), (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail]).tolist()
    below = float(np.clip(np.mean(means < ap), 0.5 / len(means), 1 - 0.5 / len(means)))
    shift = 2 * normal.inv_cdf(below)
    ends = [normal.cdf(shift + sign * normal.inv_cdf(1 - tail)) for sign in (-1, 1)]
    bc_low, bc_high = np.quantile(means, ends).tolist()
    return {
        "percentile": (low, high),
        "basic": (2 * ap - high, 2 * ap - low),
        "BC": (bc_low, bc_high),
    }


def cover(name: str, law: Law, arguments: argparse.Namespace) -> None:
    """Print how often intervals hold the true AP of a law."""
    rng = np.random.default_rng((arguments.seed, *name.encode()))
    true = true_ap(rng, law)
    aps: list[float] = []
    intervals: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.sets):
        evaluation = drawn_evaluation(rng, law, law.num_images)
        interval = ap_interval(evaluation, resamples=arguments.resamples)
        assert interval is not None
        aps.append(ap_of(evaluation))
        found = {"ap_interval": (interval.low, interval.high)}
        if arguments.kinds:
            found |= other_intervals(evaluation, arguments.resamples)
        for kind, ends in found.items():
            intervals.setdefault(kind, []).append(ends)
    print(f"{name}: true AP {true:.3f}, AP {np.mean(aps):.3f}, off by {np.std(aps):.3f}")
    for kind, pairs in intervals.items():
        low, high = np.array(pairs).T
        holds = float(np.mean((low <= true) & (true <= high)))
        print(
            f"  {kind:12} holds it in {share(holds, arguments.sets)}, below it "
            f"{np.mean(high < true):.1%}, above it {np.mean(low > true):.1%}, "
            f"mean width {np.mean(high - low):.3f}",
            flush=True,
        )


def compare(name: str, law: Law, arguments: argparse.Namespace) -> None:
    """Print how often p-values are low for two detectors of the same law."""
    rng = np.random.default_rng((arguments.seed, 1, *name.encode()))
    p_values: list[float] = []
    class_p_values: list[float] = []
    any_adjusted: list[bool] = []
    for _ in range(arguments.sets):
        truth, hardness = drawn_truth(rng, law, law.num_images)
        a, b = (drawn_results(rng, law, truth, hardness) for _ in range(2))
        comparison = compare_results(a, b, truth, options=OPTIONS, resamples=arguments.resamples)
        assert comparison.p_value is not None
        p_values.append(comparison.p_value)
        class_p_values += [c.p_value for c in comparison.classes if c.p_value is not None]
        adjusted = [c.adjusted_p_value for c in comparison.classes]
        any_adjusted.append(any(p is not None and p < 0.05 for p in adjusted))
    low = float(np.mean(np.array(p_values) < 0.05))
    print(
        f"{name}: p < 0.05 in {share(low, arguments.sets)}, "
        f"of a class in {np.mean(np.array(class_p_values) < 0.05):.1%}, "
        f"of any class by Holm in {np.mean(any_adjusted):.1%}",
        flush=True,
    )


def share(value: float, count: int) -> str:
    """A share of `count` draws, with the margin of a binomial at 95 %."""
    margin = 1.96 * math.sqrt(value * (1 - value) / count)
    return f"{value:.1%} (+- {margin:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=500, help="data sets of each law")
    parser.add_argument("--resamples", type=int, default=200, help="resamples of each data set")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS), metavar="NAME")
    parser.add_argument("--kinds", action="store_true", help="intervals of other kinds as well")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DetrKitWarning)
    started = time.perf_counter()
    print(f"The interval of AP at {LEVEL:.0%}, {arguments.sets} data sets of each law")
    for name in arguments.laws:
        cover(name, LAWS[name], arguments)
    print("Two detectors that are equally good")
    for name in arguments.laws:
        if name in COMPARED:
            compare(name, LAWS[name], arguments)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
