"""Small COCO files, as values."""

from __future__ import annotations

from typing import Any


def coco(
    boxes: list[list[float]] | None = None,
    *,
    images: list[dict[str, Any]] | None = None,
    category_ids: tuple[int, ...] = (3, 7, 91),
    **changes: Any,
) -> dict[str, Any]:
    """Return a file of 100x80 pictures; box i is annotation 10 + i of the first picture."""
    images = images or [{"id": 5, "file_name": "a.jpg", "width": 100, "height": 80}]
    annotations = [
        {"id": 10 + row, "image_id": images[0]["id"], "category_id": category_ids[0], "bbox": box}
        for row, box in enumerate(boxes or [])
    ]
    categories = [{"id": id_, "name": f"kind {id_}"} for id_ in category_ids]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}
