"""Write the part of the official references that is kept with the tests.

    python tools/parity_sample.py [FIXTURES]

Reads FIXTURES (default: ../shared/fixtures) and writes tests/parity/official_sample.json and
.safetensors: a few queries of every case, and all of its losses, assignments and gradients. The
same references give the same files.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # run as a script, the folder of this file is there instead

from tests.parity.official import CASES, SAMPLE, Reference, full_reference  # noqa: E402

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def write_sample(fixtures: Path, sample: Path) -> None:
    """Write `sample`.json and `sample`.safetensors."""
    described: dict = {"targets": [], "cases": {}}
    tensors = {}
    for name in CASES:
        reference = full_reference(fixtures, name)
        described["targets"] = [
            {"labels": labels.tolist(), "boxes": boxes.tolist()}
            for labels, boxes in reference.targets
        ]
        count = len(reference.queries)
        queries, aux_queries = [0, count // 2, count - 1], [count // 2]
        described["cases"][name] = _described(reference, queries, aux_queries)
        for key, value in _reduced(reference, queries, aux_queries).items():
            tensors[f"{name}.{key}"] = np.ascontiguousarray(value)
    text = json.dumps(described, indent=1)
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    sample.with_suffix(".json").write_text(flat + "\n", encoding="utf-8")
    save_file(tensors, sample.with_suffix(".safetensors"))


def _described(reference: Reference, queries: list[int], aux_queries: list[int]) -> dict:
    groups = {"with gradient": {}, "without gradient": {}}
    for key, shape in reference.keys.items():
        kind = "with gradient" if key in reference.gradients else "without gradient"
        groups[kind][key] = "x".join(str(side) for side in shape)
    return {
        "settings": reference.settings,
        "queries": queries,
        "aux_queries": aux_queries,
        "losses": reference.losses,
        "matches": [{"query": query, "target": target} for query, target in reference.matches],
        "keys": {kind: collapsed(keys) for kind, keys in groups.items() if keys},
    }


def _reduced(
    reference: Reference, queries: list[int], aux_queries: list[int]
) -> dict[str, np.ndarray]:
    reduced = {}
    for name, value in reference.tensors.items():
        if name.startswith("post"):
            reduced[name] = value[queries]
        else:
            reduced[name] = value[:, aux_queries if name.startswith("aux") else queries]
    reduced["gradients"] = np.stack(
        [reference.gradients[key] for key in sorted(reference.gradients)]
    )
    return reduced


def collapsed(keys: dict[str, str]) -> dict[str, str]:
    """Join keys of one shape that differ in a number alone: `{0-5}` stands for 0 to 5."""
    for place in (-1, -2, -3):
        keys = _collapsed_at(keys, place)
    return keys


def _collapsed_at(keys: dict[str, str], place: int) -> dict[str, str]:
    """Join by the number that stands at `place` among the numbers of a key."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    joined = {}
    for key, shape in keys.items():
        numbers = list(NUMBER.finditer(key))
        if len(numbers) < -place:
            joined[key] = shape
            continue
        number = numbers[place]
        group = (key[: number.start()], key[number.end() :], shape)
        groups.setdefault(group, []).append(int(number[0]))
    for (before, after, shape), numbers in groups.items():
        for first, last in _runs(sorted(numbers)):
            middle = str(first) if first == last else f"{{{first}-{last}}}"
            joined[before + middle + after] = shape
    return joined


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Return the first and last number of every unbroken run."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def main() -> None:
    fixtures = Path(sys.argv[1]) if sys.argv[1:] else REPOSITORY.parent / "shared" / "fixtures"
    write_sample(fixtures, SAMPLE)
    for file in (SAMPLE.with_suffix(".json"), SAMPLE.with_suffix(".safetensors")):
        print(f"{file.stat().st_size:8,} bytes  {file.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
