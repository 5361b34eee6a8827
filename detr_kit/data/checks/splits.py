"""What only shows between the splits of a data set: other categories, and the same pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detr_kit.data.checks.findings import MAX_CASES, Case, Findings
from detr_kit.data.checks.naming import quoted
from detr_kit.data.coco_file import CocoColumns


def check_categories(splits: Sequence[CocoColumns], findings: Sequence[Findings]) -> None:
    """Compare the category tables of all splits with the first one's, by ids and names.

    The order does not matter. What differs goes to the findings of the later split.
    """
    if not splits:
        return
    first = splits[0]
    there = dict(zip(first.category_ids.tolist(), first.category_names, strict=True))
    for columns, found in zip(splits[1:], findings[1:], strict=True):
        here = dict(zip(columns.category_ids.tolist(), columns.category_names, strict=True))
        differing = [
            id_ for id_ in sorted(there.keys() | here.keys()) if there.get(id_) != here.get(id_)
        ]
        found.add(
            "categories_differ",
            (
                Case(
                    f"category {id_}: {_said(here, id_)} here, "
                    f"{_said(there, id_)} in {first.path.name}"
                )
                for id_ in differing[:MAX_CASES]
            ),
            count=len(differing),
        )


def _said(names: Mapping[int, str], id_: int) -> str:
    return quoted(names[id_]) if id_ in names else "missing"


def check_shared_pictures(
    splits: Sequence[CocoColumns],
    digests: Sequence[Mapping[str, bytes]],
    findings: Sequence[Findings],
) -> None:
    """Find pictures with the content of one in an earlier split; `digests` are by file name.

    What a model is measured with must not be what it was trained with: the measure would say how
    well it remembers.
    """
    seen: dict[bytes, str] = {}
    for columns, by_name, found in zip(splits, digests, findings, strict=True):
        own: dict[bytes, str] = {}
        cases: list[Case] = []
        count = 0
        for image_id, name in zip(columns.image_ids.tolist(), columns.file_names, strict=True):
            digest = by_name.get(name)
            if digest is None:
                continue
            own.setdefault(digest, f"{quoted(name)} of {columns.path.name}")
            if digest in seen:
                count += 1
                if len(cases) < MAX_CASES:
                    text = f"image {image_id} {quoted(name)}: the same content as {seen[digest]}"
                    cases.append(Case(text, file=name, image_id=image_id))
        found.add("shared_picture", cases, count=count)
        seen = {**own, **seen}
