"""The figures of an evaluation, and their tables for a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

# in the order in which pycocotools summarises; the last column describes a figure to a reader
FIGURES: tuple[tuple[str, str, str], ...] = (
    ("ap", "AP", "IoU 0.50 to 0.95"),
    ("ap50", "AP50", "IoU 0.50"),
    ("ap75", "AP75", "IoU 0.75"),
    ("ap_small", "AP small", "area below 32²"),
    ("ap_medium", "AP medium", "area 32² to 96²"),
    ("ap_large", "AP large", "area above 96²"),
    ("ar_1", "AR 1", "1 detection an image"),
    ("ar_10", "AR 10", "10 detections an image"),
    ("ar_100", "AR 100", "100 detections an image"),
    ("ar_small", "AR small", "area below 32²"),
    ("ar_medium", "AR medium", "area 32² to 96²"),
    ("ar_large", "AR large", "area above 96²"),
)
NO_GROUND_TRUTH = "no ground truth"


@dataclass(frozen=True)
class CocoMetrics:
    """The 12 COCO figures, in [0, 1], and the AP of each class.

    A figure is None where the data set has no ground truth for it (pycocotools gives -1): no
    small object, say, or no object of a class. The AP is the mean of `per_class` without its
    None. `seconds` is what scoring took.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, float | None]
    per_class_ap50: dict[str, float | None]
    num_images: int
    num_detections: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for json; None is null there."""
        return asdict(self)

    def table(self) -> Group:
        """Return the tables of the figures and of the classes, to print with rich."""
        return _tables(self)

    __rich__ = table


def _tables(metrics: CocoMetrics) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    figures = Table(
        "figure", "over", title=f"{metrics.num_detections} detections, {metrics.num_images} images"
    )
    figures.add_column("value", justify="right")
    for field, name, over in FIGURES:
        figures.add_row(name, over, _shown(getattr(metrics, field)))
    classes = Table("class")
    classes.add_column("AP", justify="right")
    classes.add_column("AP50", justify="right")
    for name, value in metrics.per_class.items():
        # Text: a name with square brackets is no markup
        classes.add_row(Text(name), _shown(value), _shown(metrics.per_class_ap50[name]))
    return Group(figures, classes)


def _shown(value: float | None) -> str:
    return NO_GROUND_TRUTH if value is None else f"{value:.3f}"
