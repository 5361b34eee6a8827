"""Which usual mistake explains a low AP: boxes in another format or scale, ids of something else.

Each is undone on a sample of the pictures and the AP computed anew. That it rises is no accident of
what all pictures look like: where detections of another picture score as well, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.evaluation.accumulation import average_precision_of
from detr_kit.evaluation.found import FoundObjects
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.match_table import MatchTable, match
from detr_kit.evaluation.options import ALL_AREAS, ScoringOptions
from detr_kit.evaluation.ordering import places_in_runs

# Of fewer, chance explains more than any mistake does.
FEWEST_DETECTIONS = 100
FEWEST_OBJECTS = 20
LOW_AP = 0.2
# An explanation must raise the AP by so much and so many times.
LEAST_GAIN = 0.15
LEAST_RATIO = 3
# Of explanations that are as good, the first counts: the simpler one.
_AS_GOOD = 0.85
# What is looked at, so that it takes a fraction of a second whatever the size of the results.
_DETECTIONS, _PAIRS = 20_000, 100_000
_NAMED_PICTURES = 20_000
_FORMATS: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {
    "": lambda x, y, w, h: (x, y, w, h),
    "x0, y0, x1, y1": lambda x0, y0, x1, y1: (x0, y0, x1 - x0, y1 - y0),
    "centre x, centre y, width, height": lambda x, y, w, h: (x - w / 2, y - h / 2, w, h),
    "y, x, height, width": lambda y, x, h, w: (x, y, w, h),
    "y0, x0, y1, x1": lambda y0, x0, y1, x1: (x0, y0, x1 - x0, y1 - y0),
}


@dataclass(frozen=True)
class _Sample:
    """Some pictures, numbered from 0, their objects, and their best-scored detections."""

    truth: GroundTruth
    found: FoundObjects
    options: ScoringOptions

    def ap(self) -> float:
        return _mean_ap(match(self.truth, self.found, self.options))

    def sizes_wh(self, image_rows: np.ndarray) -> np.ndarray | None:
        """Return the sizes (D, 2) of pictures, None where one is not known."""
        sizes_wh = self.truth.sizes_hw[image_rows, ::-1].astype(np.float64)
        return sizes_wh if len(sizes_wh) and (self.truth.sizes_hw > 0).all() else None


def explanation_of_low_ap(table: MatchTable) -> str:
    """Return the mistake that explains the AP at the lowest IoU threshold; "" where none does.

    Only an AP below 0.2, of 100 detections and 20 objects or more, is looked into; what explains it
    raises it by 0.15 and to three times as much, or more.
    """
    num_objects = np.count_nonzero(~table.truth.is_crowd)
    if len(table.rows) < FEWEST_DETECTIONS or num_objects < FEWEST_OBJECTS:
        return ""
    ap = _mean_ap(table)
    if ap >= LOW_AP:
        return ""
    with np.errstate(over="ignore", invalid="ignore"):  # boxes may be as large as 1e100
        words, higher_ap = _best_explanation(table, ap)
    iou = table.options.iou_thresholds[0]
    figure = "AP50" if np.isclose(iou, 0.5) else f"AP at IoU {iou:g}"
    return f"{figure} is {ap:.3f}; it would be about {higher_ap:.2f} if {words}" if words else ""


def _mean_ap(table: MatchTable) -> float:
    aps = average_precision_of(table.at(0))
    known = aps[~np.isnan(aps)]
    return float(known.mean()) if len(known) else 0.0


def _best_explanation(table: MatchTable, ap: float) -> tuple[str, float]:
    """Return in words what would give the highest AP, and that AP; ("", 0) where none is enough."""
    pictures = _sampled_pictures(table)
    sample = _sampled(table, pictures)
    ap = max(ap, sample.ap())
    # A few objects may be hit by luck.
    gain = LEAST_GAIN + 0.5 / np.sqrt(max(len(sample.truth.image_rows), 1))
    least = max(ap + gain, ap * LEAST_RATIO)
    tried = [
        (candidate.ap(), words, candidate)
        for candidates in (_other_ids(table, pictures, sample), _other_boxes(sample))
        for words, candidate in candidates
    ]
    best = max((ap for ap, *_ in tried), default=0.0)
    if best < least:
        return "", 0.0
    higher_ap, words, chosen = next(entry for entry in tried if entry[0] >= _AS_GOOD * best)
    by_chance = _ap_in_other_pictures(chosen)
    if higher_ap < max(by_chance + gain, by_chance * LEAST_RATIO, least):
        return "", 0.0
    return words, higher_ap


def _ap_in_other_pictures(sample: _Sample) -> float:
    """What boxes earn by lying where objects lie in any picture; 0 where there is but one."""
    num_images = sample.truth.num_images
    if num_images < 2:
        return 0.0
    image_rows = sample.found.image_rows
    moved = ((image_rows + num_images // 2) % num_images).astype(np.int32)
    boxes_xywh = sample.found.boxes_xywh
    before, after = sample.sizes_wh(image_rows), sample.sizes_wh(moved)
    if before is not None and after is not None:
        boxes_xywh = boxes_xywh * np.tile(after / before, 2)
    found = replace(sample.found, image_rows=moved, boxes_xywh=boxes_xywh)
    return replace(sample, found=found).ap()


def _sampled_pictures(table: MatchTable) -> np.ndarray:
    """Return rows of pictures that have objects, in a random order, as many as can be looked at."""
    truth = table.truth
    num_objects = np.bincount(truth.image_rows, minlength=truth.num_images)
    num_found = np.bincount(table.found.image_rows[table.rows], minlength=truth.num_images)
    pictures = np.random.default_rng(0).permutation(np.flatnonzero(num_objects))
    num_found, num_objects = num_found[pictures].cumsum(), num_objects[pictures]
    num_pairs = (num_objects * np.diff(num_found, prepend=0)).cumsum()
    fits = (num_found <= _DETECTIONS) & (num_pairs <= _PAIRS)
    return pictures[: max(np.count_nonzero(fits), 1)]


def _sampled(
    table: MatchTable, pictures: np.ndarray, picture_of: np.ndarray | None = None
) -> _Sample:
    """Return the sample of `pictures`; detections of picture i are those of `picture_of` (I,) i.

    Of none where that is -1.
    """
    truth, found, options = table.truth, table.found, table.options
    place = np.full(truth.num_images + 1, -1, dtype=np.int32)  # the last is that of none
    place[pictures] = np.arange(len(pictures))
    place_of_found = place if picture_of is None else place[picture_of]
    image_rows = place_of_found[found.image_rows[table.rows]]
    here = np.flatnonzero(image_rows >= 0)
    if len(here) > _DETECTIONS:
        here = np.sort(here[np.argsort(-found.scores[table.rows[here]])[:_DETECTIONS]])
    rows = table.rows[here]
    objects = np.flatnonzero(place[truth.image_rows] >= 0)
    return _Sample(
        replace(
            truth,
            image_ids=truth.image_ids[pictures],
            sizes_hw=truth.sizes_hw[pictures],
            image_rows=place[truth.image_rows[objects]],
            class_columns=truth.class_columns[objects],
            boxes_xywh=truth.boxes_xywh[objects],
            areas=truth.areas[objects],
            is_crowd=truth.is_crowd[objects],
            annotation_ids=truth.annotation_ids[objects],
        ),
        FoundObjects(
            found.name,
            image_rows[here],
            found.class_columns[rows],
            found.boxes_xywh[rows],
            found.scores[rows],
        ),
        ScoringOptions(
            options.iou_thresholds[:1],
            {ALL_AREAS: options.areas[ALL_AREAS]},
            options.max_detections[-1:],
            options.class_agnostic,
        ),
    )


def _other_ids(
    table: MatchTable, pictures: np.ndarray, sample: _Sample
) -> Iterator[tuple[str, _Sample]]:
    """Yield what would be if ids were those of the next picture or class, or classes were one."""
    truth, found = table.truth, sample.found
    in_order = f"in the order of those of {truth.path}"
    rows = np.arange(truth.num_images)
    yield f"image ids were one lower, {in_order}", _sampled(table, pictures, rows - 1)
    higher = np.where(rows + 1 < len(rows), rows + 1, -1)
    yield f"image ids were one higher, {in_order}", _sampled(table, pictures, higher)
    if len(rows) <= _NAMED_PICTURES:
        by_name = np.argsort(np.array(list(truth.file_names), dtype=object), kind="stable")
        if (by_name != rows).any():
            words = f"image ids numbered the pictures of {truth.path} in the order of file names"
            yield words, _sampled(table, pictures, by_name)
    if table.options.class_agnostic:
        return
    for shift, words in ((-1, "lower"), (1, "higher")):
        columns = found.class_columns + np.int32(shift)
        kept = np.flatnonzero((columns >= 0) & (columns < len(truth.categories)))
        moved = replace(_taken(found, kept), class_columns=columns[kept])
        yield f"category ids were one {words}, {in_order}", replace(sample, found=moved)
    agnostic = replace(sample, options=replace(sample.options, class_agnostic=True))
    pairs = _class_pairs(agnostic)
    # One class that most objects are of may be found well, and others not at all.
    if 2 * np.trace(pairs) < pairs.sum():
        words = f"classes were ignored: do the category ids mean those of {truth.path}?"
        yield words + _most_exchanged(pairs, truth.categories), agnostic


def _class_pairs(agnostic: _Sample) -> np.ndarray:
    """Return how many detections of class i found an object of class j, (K, K) int64."""
    matches = match(agnostic.truth, agnostic.found, agnostic.options).at(0)
    hits = np.flatnonzero(matches.is_true)
    num_classes = len(agnostic.truth.categories)
    pairs = np.zeros((num_classes, num_classes), dtype=np.int64)
    of_found = agnostic.found.class_columns[matches.rows[hits]]
    np.add.at(pairs, (of_found, agnostic.truth.class_columns[matches.objects[hits]]), 1)
    return pairs


def _most_exchanged(pairs: np.ndarray, categories: CategoryTable) -> str:
    """Say which class most detections of another one lie on, where they are many and agree."""
    others = pairs * ~np.eye(len(pairs), dtype=np.bool_)
    column, on = np.unravel_index(int(others.argmax()), others.shape)
    count, total = pairs[column, on], pairs[column].sum()
    if count < 10 or count < 0.7 * total:
        return ""
    here, there = (f"{categories.names[c]!r} (id {categories.ids[c]})" for c in (column, on))
    return f" Of {total} {here} on objects, {count} lie on {there}"


def _taken(found: FoundObjects, rows: np.ndarray) -> FoundObjects:
    return FoundObjects(
        found.name,
        found.image_rows[rows],
        found.class_columns[rows],
        found.boxes_xywh[rows],
        found.scores[rows],
    )


def _other_boxes(sample: _Sample) -> Iterator[tuple[str, _Sample]]:
    """Yield what would be if boxes were of another format, scale, or both."""
    expected = "(COCO's are x, y, width, height in pixels)"
    detections, objects = _same_picture_and_class(sample)
    truth_xywh = sample.truth.boxes_xywh[objects]
    sizes_wh = sample.sizes_wh(sample.found.image_rows)
    if sizes_wh is not None:
        truth_shares = truth_xywh / np.tile(sizes_wh[detections], 2)
    for name, read in _FORMATS.items():
        boxes_xywh = np.stack(read(*sample.found.boxes_xywh.T), axis=1)
        own = boxes_xywh[detections]
        words = [f"read as {name}"] if name else []
        scaled = [(words, np.ones(2))] if name else []
        factor = _common_factor(own, truth_xywh)
        if factor and abs(factor - 1) > 0.05:
            resized = f"multiplied by {factor:.3g}, as of pictures of another size"
            scaled.append(([*words, resized], np.full(2, factor)))
        if sizes_wh is not None and (factor := _common_factor(own, truth_shares)):
            scaled.append(([*words, _words_of_share(factor)], sizes_wh * factor))
        for words_of_boxes, factors in scaled:
            factors_xyxy = np.tile(factors, 2)
            changed = replace(sample.found, boxes_xywh=boxes_xywh * factors_xyxy)
            line = f"boxes were {' and '.join(words_of_boxes)} {expected}"
            yield line, replace(sample, found=changed)


def _words_of_share(factor: float) -> str:
    if 0.9 < factor < 1.1:
        return "multiplied by the width and height of their picture"
    side = float(f"{1 / factor:.2g}")
    return f"taken from pictures resized to about {side:g} x {side:g}"


def _same_picture_and_class(sample: _Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return the detections (P,) and objects (P,) of all pairs of one picture and class."""
    truth, found = sample.truth, sample.found
    agnostic = sample.options.class_agnostic
    num_classes = 1 if agnostic else len(truth.categories)
    keys, object_keys = (
        columns.image_rows.astype(np.int64) * num_classes
        + (0 if agnostic else columns.class_columns)
        for columns in (found, truth)
    )
    order = np.argsort(object_keys, kind="stable")
    starts = np.searchsorted(object_keys[order], keys, "left")
    counts = np.searchsorted(object_keys[order], keys, "right") - starts
    detections = np.arange(len(keys)).repeat(counts)
    return detections, order[starts.repeat(counts) + places_in_runs(detections)]


def _common_factor(boxes_xywh: np.ndarray, truth_xywh: np.ndarray) -> float | None:
    """Return by what most of the pairs (P, 4) that differ by a factor alone do; None where few.

    In such a pair, sides and centres agree in their ratio. Pairs of a box and another object have
    any ratio; those of its own object pile up at one.
    """
    columns = []
    for boxes in (boxes_xywh, truth_xywh):
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        columns.append(np.concatenate([centres, boxes[:, 2:]], axis=1))
    usable = np.flatnonzero(((columns[0] > 0) & (columns[1] > 0)).all(axis=1))
    ratios = np.log(columns[1][usable] / columns[0][usable])
    agreeing = ratios.max(axis=1, initial=-np.inf) - ratios.min(axis=1, initial=np.inf) < 0.3
    votes = np.sort(ratios[agreeing, :2].mean(axis=1))
    if len(votes) < FEWEST_OBJECTS:
        return None
    ends = np.searchsorted(votes, votes + 0.1, "right")
    start = int(np.argmax(ends - np.arange(len(votes))))
    return float(np.exp(np.median(votes[start : ends[start]])))
