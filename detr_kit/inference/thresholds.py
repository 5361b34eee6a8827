"""How sure a detector must be: one score for everything, or one for each category."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detr_kit.categories import CategoryTable
from detr_kit.checkpoints.listing import listed
from detr_kit.data.json_file import read_bytes
from detr_kit.detections import Detections
from detr_kit.errors import DetrKitError

# Mapping's keys are invariant: without the first two, a dict of ids would not be one for mypy.
Threshold = float | Mapping[int, float] | Mapping[str, float] | Mapping[int | str, float]
"""The least score to keep, or that of each category by its id or name.

A text that is no category's name and consists of digits is an id, as json has no other keys.
Categories that are not named take the number under "default".
"""

DEFAULT = "default"


def above(detections: Detections, threshold: Threshold, default: float = 0.5) -> Detections:
    """Return the detections whose score is at least that of their category.

    Categories that `threshold` does not name take its "default", else `default`. Nothing tells here
    which categories there are, so a name that is not theirs has no effect; `resolve_thresholds`
    finds it. Raises DetrKitError for scores that are not in [0, 1].
    """
    if not isinstance(threshold, Mapping):
        return detections.above(_score(threshold, "threshold"))
    given: Mapping[Any, float] = threshold
    least_scores = {key: _score(value, _of(key)) for key, value in given.items()}
    rest = least_scores.get(DEFAULT, _score(default, _of(DEFAULT)))
    kinds = list(zip(detections.category_ids.tolist(), detections.names, strict=True))
    least = {kind: _least(*kind, least_scores, rest) for kind in set(kinds)}
    # In float32 as the scores are: 0.9 shall reach 0.9.
    return detections.select(
        detections.scores >= np.array([least[kind] for kind in kinds], dtype=np.float32)
    )


def resolve_thresholds(
    threshold: Threshold, categories: CategoryTable, default: float = 0.5
) -> dict[int, float]:
    """Return the least score of every category that is used, by its id.

    Raises DetrKitError for a name or an id that no category has, a category that is named twice,
    and scores that are not in [0, 1].
    """
    if not isinstance(threshold, Mapping):
        return dict.fromkeys(categories.column_of, _score(threshold, "threshold"))
    given: Mapping[Any, float] = threshold
    by_id = _by_id(given, categories, "threshold")
    rest = _score(given.get(DEFAULT, default), _of(DEFAULT))
    return {id_: by_id.get(id_, rest) for id_ in categories.column_of}


def load_thresholds(
    path: str | Path, categories: CategoryTable | None = None
) -> dict[int | str, float]:
    """Return the thresholds that a json file holds, by category name.

    The file is what `detr-kit score --json` or `detr-kit eval --json` wrote, whose thresholds are
    those of the highest F1 of each class. Classes without objects or without a right detection have
    none there; they take the one of all classes together, which comes as "default". Or it is an
    object of your own that gives numbers to names or ids, and perhaps to "default".

    Raises DetrKitError that names the file and the key: for what is not a number in [0, 1], for
    keys that come twice, for an evaluation that found nothing right, and, where `categories` are
    given, for a name or an id that none of them has.
    """
    path = Path(path)
    try:
        content = json.loads(
            read_bytes(path, "file of thresholds"),
            object_pairs_hook=lambda pairs: _once(pairs, path),
        )
    except (ValueError, RecursionError) as error:
        raise DetrKitError(f"{path}: not a json file: {error}") from error
    if not isinstance(content, dict):
        raise DetrKitError(f"{path}: expected a json object of categories and their thresholds")
    found = _of_evaluation(content, path) if _is_evaluation(content) else content
    thresholds: dict[int | str, float] = {
        key: _score(value, f"{path}: {key!r}") for key, value in found.items()
    }
    if categories is not None:
        _by_id(thresholds, categories, str(path))
    return thresholds


def _is_evaluation(content: dict[str, Any]) -> bool:
    """A category may be called `analysis`, too, but has a number."""
    return isinstance(content.get("analysis"), dict)


def _of_evaluation(content: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        best = content["analysis"]["thresholds"]
        pooled = best["all"] and best["all"]["threshold"]
        classes = {name: point["threshold"] for name, point in best["classes"].items() if point}
        options = content["options"]  # null stands for COCO's own
        class_agnostic = options is not None and options["class_agnostic"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DetrKitError(
            f"{path}: looks like an evaluation, but without all of its 'analysis.thresholds' and "
            "'options'; write it anew with `detr-kit score --json`"
        ) from error
    if pooled is None:
        raise DetrKitError(
            f"{path}: no detection of that evaluation was right, so it tells no thresholds"
        )
    if DEFAULT in classes:
        raise DetrKitError(
            f"{path}: a class is called {DEFAULT!r}, which stands for all that are not named; "
            "write a file of thresholds that names the category by its id"
        )
    return {DEFAULT: pooled} | ({} if class_agnostic else classes)


def _by_id(
    threshold: Mapping[Any, float], categories: CategoryTable, source: str
) -> dict[int, float]:
    """Return what is given for categories, by their ids."""
    id_of = {categories.names[column]: id_ for id_, column in categories.column_of.items()}
    key_of: dict[int, int | str] = {}
    for key in threshold:
        if key == DEFAULT:
            continue
        id_ = _category_id(key, id_of)
        if id_ is None:
            raise DetrKitError(f"{source}: {_unknown(key, list(id_of))}")
        if id_ in key_of:
            raise DetrKitError(
                f"{source}: {key_of[id_]!r} and {key!r} are the same category; name it once"
            )
        key_of[id_] = key
    return {id_: _score(threshold[key], f"{source}: {key!r}") for id_, key in key_of.items()}


def _category_id(key: int | str, id_of: dict[str, int]) -> int | None:
    if isinstance(key, str) and key in id_of:
        return id_of[key]
    for id_ in id_of.values():
        if str(id_) == str(key):  # numpy's integers too, but neither 3.0 nor True
            return id_
    return None


def _least(id_: int, name: str, thresholds: dict[int | str, float], rest: float) -> float:
    for key in (name, id_, str(id_)):
        if key != DEFAULT and key in thresholds:
            return thresholds[key]
    return rest


def _unknown(key: int | str, names: list[str]) -> str:
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no category {key!r}{meant} (there are: {listed(names)})"


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise DetrKitError(f"{path}: {twice!r} comes twice")
    return values


def _score(value: Any, name: str) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        score = float(value)
        if 0 <= score <= 1:
            return score
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:39]}…"
    raise DetrKitError(f"{name}: expected a score from 0 to 1, got {shown}")


def _of(key: object) -> str:
    return f"threshold of {key!r}"
