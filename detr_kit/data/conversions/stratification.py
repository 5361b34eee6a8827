"""Parts of a data set in which every class has its share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def part_sizes(total: int, fractions: Sequence[float]) -> list[int]:
    """Return whole numbers that sum to `total`, by the method of the largest remainder.

    `fractions` sum to 1; of equal remainders the first goes first.
    """
    wanted = np.array(fractions) * total
    # A product such as 0.7 * 10 may end just below the whole number that it is.
    sizes = np.floor(wanted + 1e-9).astype(int)
    largest = np.argsort(-(wanted - sizes).round(9), kind="stable")
    sizes[largest[: total - int(sizes.sum())]] += 1
    return sizes.tolist()


def stratify(
    classes_of: Sequence[Iterable[int]], fractions: Sequence[float], *, seed: int
) -> np.ndarray:
    """Return the part (I,) of each picture, given the set of its classes.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, On the Stratification of
    Multi-Label Data, algorithm 1): the class with the fewest pictures left is dealt out first, each
    picture to the part that lacks most of this class, then to the part that lacks most pictures,
    then by chance. Pictures without a class count as a class of their own. Unlike there, a part
    that has its size, see `part_sizes`, takes no more.
    """
    rng = np.random.default_rng(seed)
    classes = [sorted({*found}) or [-1] for found in classes_of]
    room = part_sizes(len(classes), fractions)
    left: dict[int, list[int]] = {}
    # Chance decides in which order the pictures of a class are dealt out.
    for picture in rng.permutation(len(classes)).tolist():
        for class_ in classes[picture]:
            left.setdefault(class_, []).append(picture)
    lacking = {
        class_: [fraction * len(pictures) for fraction in fractions]
        for class_, pictures in left.items()
    }
    parts = np.full(len(classes), -1, dtype=np.int64)
    num_left = {class_: len(pictures) for class_, pictures in left.items()}
    while left:
        rarest = min(left, key=lambda class_: (num_left[class_], class_))
        for picture in left.pop(rarest):
            if parts[picture] >= 0:
                continue
            part = _neediest(lacking[rarest], room, rng)
            parts[picture] = part
            room[part] -= 1
            for class_ in classes[picture]:
                lacking[class_][part] -= 1
                num_left[class_] -= 1
        left = {class_: pictures for class_, pictures in left.items() if num_left[class_]}
    return parts


def _neediest(lacking: Sequence[float], room: Sequence[int], rng: np.random.Generator) -> int:
    # Rounded, so that sums of fractions that mean the same tie.
    need = [
        (round(lack, 6), space) if space else (-np.inf, 0)
        for lack, space in zip(lacking, room, strict=True)
    ]
    best = [part for part, one in enumerate(need) if one == max(need)]
    return best[0] if len(best) == 1 else int(rng.choice(best))
