"""Check that a config can learn at all: can it find every object of a few pictures by heart?

    python tools/overfit.py configs/detr_small_data.yaml data.train.annotations=... \
        data.train.images=... output=runs/overfit epochs=400

Takes the first 8 pictures (by id) that hold at least two objects, trains on them without
augmentation or dropout, and evaluates on the same ones. A sound set-up passes AP50 0.9; one that
does not has broken labels, sizes or rates, and will not learn from more pictures either. Exits
with status 1 below 0.9. `key=value` arguments are those of `detr-kit train`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from detr_kit import DetrKitError, train
from detr_kit.config import load_config
from detr_kit.data.annotations import load_annotations
from detr_kit.files import atomic_write

PICTURES = 8
ENOUGH = 0.9


def subset(annotations: Path) -> dict[str, object]:
    """Return the COCO content of the first pictures with at least two objects, without crowds."""
    coco = json.loads(annotations.read_text(encoding="utf-8"))
    objects = [a for a in coco["annotations"] if not a.get("iscrowd")]
    counts = Counter(annotation["image_id"] for annotation in objects)
    images = sorted(coco["images"], key=lambda image: image["id"])
    images = [image for image in images if counts[image["id"]] >= 2][:PICTURES]
    kept = {image["id"] for image in images}
    return {
        **coco,
        "images": images,
        "annotations": [a for a in coco["annotations"] if a["image_id"] in kept],
    }


def main() -> int:
    config_path, *overrides = sys.argv[1:] or ["--help"]
    if config_path in ("-h", "--help"):
        print(__doc__)
        return 0
    config = load_config(config_path, overrides)
    if config.data.train is None:
        raise DetrKitError("key 'data.train' is missing")
    load_annotations(config.data.train.annotations)  # says what is wrong with the file
    few = config.output / "few.json"
    with atomic_write(few) as path:
        path.write_text(json.dumps(subset(config.data.train.annotations)), encoding="utf-8")
    run = train(
        config_path,
        [
            *overrides,
            f"data.train.annotations={few}",
            f"data.val.annotations={few}",
            f"data.val.images={config.data.train.images}",
            "data.augmentation=none",
            "model.dropout=0",
        ],
    )
    scored = [row for row in run.metrics if "val" in row]
    seconds = sum(row["seconds"] + row.get("eval_seconds", 0.0) for row in run.metrics)
    first = next((row["epoch"] for row in scored if row["val"]["ap50"] > ENOUGH), None)
    best = max(row["val"]["ap50"] for row in scored)
    print(
        f"AP50 {best:.3f} on {PICTURES} pictures; above {ENOUGH} from epoch {first}, "
        f"{seconds:.0f} s"
    )
    return 0 if best > ENOUGH else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DetrKitError as error:
        sys.exit(f"overfit: {error}")
