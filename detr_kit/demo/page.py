"""The page itself: what stands where, and what happens when something is chosen."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_kit.demo.limits import Limits, read_limited
from detr_kit.demo.loops import in_a_loop
from detr_kit.demo.markup import (
    boxes_markup,
    caption_markup,
    limits_markup,
    notice_markup,
    picture_markup,
    summary_markup,
    table_markup,
    title_markup,
)
from detr_kit.demo.uploads import SWEEP_EVERY, UPLOAD_AGE
from detr_kit.demo.view import MERGE_IOU, Choices, Shown, class_counts, drawn_of, found_in
from detr_kit.errors import DetrKitError, DetrKitWarning
from detr_kit.export.onnx_detector import OnnxDetector
from detr_kit.images import ImageError
from detr_kit.inference.predictor import Predictor

try:
    import gradio as gr
except ImportError as error:
    raise DetrKitError("the demo needs gradio: pip install 'detr_kit[demo]'") from error

WELCOME = "Drop a picture to see what the model finds in it."
THUMBNAIL = 192
MOST_EXAMPLES = 24
_log = logging.getLogger(__name__)


class PageModel:
    """What is behind a page: answers to what a user does, as values for the page's parts."""

    def __init__(self, predictor: Predictor, limits: Limits, examples: Sequence[Path] = ()) -> None:
        self.predictor = predictor
        self.limits = limits
        self.examples = list(examples)

    def open(self, path: Path) -> tuple[Shown, np.ndarray]:
        """Read a picture and find everything in it.

        Returns that and the pixels (H, W, 3). Raises DetrKitError with a message for the user,
        which tells nothing about this machine.
        """
        pixels = read_limited(path, self.limits)
        start = time.perf_counter()
        try:
            [detections] = self.predictor.predict([pixels], threshold=0.0, batch_size=1)
        except Exception as error:
            _log.exception("%s: the model failed", path.name)
            raise DetrKitError(
                f"{path.name}: the model failed on this picture; the terminal that runs this page "
                "tells why"
            ) from error
        seconds = time.perf_counter() - start
        size_hw = pixels.shape[0], pixels.shape[1]
        return Shown(path.name, size_hw, detections, seconds), pixels

    def show(self, path: Path, threshold: float, merge: bool) -> list[Any]:
        """Answer a new picture: all parts of the page."""
        try:
            shown, pixels = self.open(path)
        except DetrKitError as error:
            return [None, frozenset(), "", *_nothing(str(error), problem=True)]
        choices = Choices(threshold, merge=merge)
        return [shown, choices.hidden, picture_markup(pixels), *_parts(shown, choices)]

    def redraw(
        self, shown: Shown | None, hidden: frozenset[int], threshold: float, merge: bool
    ) -> list[Any]:
        """Answer another threshold, or boxes merged or not; the model is not asked."""
        if shown is None:
            return [gr.skip()] * 5
        return _parts(shown, Choices(threshold, hidden, merge))

    def choose_classes(
        self,
        shown: Shown | None,
        hidden: frozenset[int],
        threshold: float,
        merge: bool,
        chosen: list[int],
    ) -> list[Any]:
        """Answer classes ticked or not; those not offered now stay as they were."""
        if shown is None:
            return [hidden, *[gr.skip()] * 5]
        found = found_in(shown, Choices(threshold, merge=merge))
        offered = frozenset(found.category_ids.tolist())
        hidden = (hidden - offered) | (offered - frozenset(chosen))
        return [hidden, *_parts(shown, Choices(threshold, hidden, merge))]


def _parts(shown: Shown, choices: Choices) -> list[Any]:
    """Return boxes, caption, badges, the choice of classes and the table."""
    found = found_in(shown, choices)
    drawn = drawn_of(found, choices)
    counts = class_counts(found)
    by_name = sorted(counts, key=lambda each: (each.name, each.category_id))
    ticks = gr.CheckboxGroup(
        choices=[(each.name, each.category_id) for each in by_name],
        value=[each.category_id for each in by_name if each.category_id not in choices.hidden],
        visible=bool(counts),
    )
    return [
        boxes_markup(drawn, shown.size_hw),
        caption_markup(shown, drawn, len(found) - len(drawn)),
        summary_markup(counts, choices.hidden),
        ticks,
        table_markup(drawn),
    ]


def _nothing(text: str, *, problem: bool = False) -> list[Any]:
    """Return the same parts where there is no picture but something to say."""
    return [notice_markup(text, problem=problem), "", "", gr.CheckboxGroup([], visible=False), ""]


@in_a_loop
def build_page(
    predictor: Predictor,
    *,
    title: str = "Object detection",
    device: str | None = None,
    threshold: float = 0.5,
    examples: Sequence[Path] = (),
    limits: Limits | None = None,
) -> gr.Blocks:
    """Return the page of a detector; `detr_kit.demo.server.serve` shows it.

    `title` is the checkpoint's name, `device` says what the model runs on (the predictor's by
    default), `examples` are pictures that a click opens; those that cannot be read, and those
    after the first 24, are left out with a DetrKitWarning. Pictures go through the model one at a
    time.

    Raises DetrKitError where gradio is missing, or the threshold is not in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise DetrKitError(f"threshold: expected a number from 0 to 1, got {threshold}")
    limits = limits or Limits()
    thumbnails = _thumbnails(examples, limits)
    model = PageModel(predictor, limits, [path for path, _ in thumbnails])
    num_classes = sum(predictor.categories.used)
    facts = [
        f"{num_classes} class{'' if num_classes == 1 else 'es'}",
        device or _device_of(predictor),
    ]

    page = gr.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEEP_EVERY, UPLOAD_AGE))
    with page:
        _html(title_markup(title, facts))
        with gr.Row(elem_id="dk-page"):
            with gr.Column(scale=2, min_width=300):
                controls = _controls(threshold, limits)
                gallery = _gallery(thumbnails)
            with gr.Column(scale=5, min_width=320):
                results = _results()
        _connect(model, controls, gallery, results)
    page.queue(max_size=limits.waiting, api_open=False)
    return page


def _device_of(predictor: Predictor) -> str:
    if isinstance(predictor, OnnxDetector):
        provider = predictor.session.get_providers()[0]
        return f"ONNX Runtime on {provider.removesuffix('ExecutionProvider')}"
    return f"on {getattr(predictor, 'device', 'an unknown device')}"


def _controls(threshold: float, limits: Limits) -> dict[str, Any]:
    return {
        "upload": gr.File(
            label="Picture",
            show_label=False,
            file_types=["image"],
            height=140,
            elem_id="dk-upload",
        ),
        "limits": _html(limits_markup(limits, (UPLOAD_AGE + SWEEP_EVERY) // 60)),
        "threshold": gr.Slider(
            0,
            1,
            value=threshold,
            step=0.01,
            label="Score threshold",
            info="Objects that the model is less sure of are not shown.",
            buttons=[],
            elem_id="dk-threshold",
        ),
        "classes": gr.CheckboxGroup([], label="Classes found", visible=False, elem_id="dk-filter"),
        "merge": gr.Checkbox(
            label="Merge overlapping boxes of a class",
            info=f"Non-maximum suppression at IoU {MERGE_IOU:g}; off, as the model was trained.",
            elem_id="dk-merge",
        ),
    }


def _results() -> dict[str, Any]:
    # The picture and its boxes lie on each other: a new threshold sends the boxes only.
    with gr.Column(elem_id="dk-stage"):
        picture = _html("", "dk-picture")
        boxes = _html(notice_markup(WELCOME), "dk-boxes")
    return {
        "picture": picture,
        "boxes": boxes,
        "caption": _html("", "dk-caption"),
        "summary": _html("", "dk-summary"),
        "table": _html("", "dk-detections"),
    }


def _html(markup: str, name: str | None = None) -> gr.HTML:
    return gr.HTML(markup, padding=False, elem_id=name, elem_classes="dk-plain")


def _gallery(thumbnails: Sequence[tuple[Path, Image.Image]]) -> gr.Gallery | None:
    if not thumbnails:
        return None
    return gr.Gallery(
        [(thumbnail, path.name) for path, thumbnail in thumbnails],
        label="Examples",
        columns=4,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="dk-examples",
    )


def _connect(
    model: PageModel,
    controls: dict[str, Any],
    gallery: gr.Gallery | None,
    results: dict[str, Any],
) -> None:
    """Say what calls what; nothing of it can be called but by the page."""
    shown, hidden = gr.State(None), gr.State(frozenset())
    threshold, merge, classes = controls["threshold"], controls["merge"], controls["classes"]
    parts = [results["boxes"], results["caption"], results["summary"], classes, results["table"]]
    everything = [shown, hidden, results["picture"], *parts]
    through_the_model: dict[str, Any] = {
        "concurrency_limit": 1,
        "concurrency_id": "model",
        "show_progress_on": results["boxes"],
        "api_visibility": "private",
    }
    # Quick answers wait for nothing; of a slider's many values the last one counts.
    at_once: dict[str, Any] = {
        "queue": False,
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "api_visibility": "private",
    }

    def opened(path: str | None, threshold: float, merge: bool) -> list[Any]:
        if path is None:
            return [gr.skip()] * (len(everything) + 1)
        # The field is emptied, ready for the next picture.
        return [*model.show(Path(path), threshold, merge), None]

    upload = controls["upload"]
    upload.upload(opened, [upload, threshold, merge], [*everything, upload], **through_the_model)
    redrawing = [shown, hidden, threshold, merge]
    threshold.input(model.redraw, redrawing, parts, **at_once)
    merge.input(model.redraw, redrawing, parts, **at_once)
    classes.input(model.choose_classes, [*redrawing, classes], [hidden, *parts], **at_once)
    if gallery is not None:

        def opened_example(threshold: float, merge: bool, event: gr.SelectData) -> list[Any]:
            return model.show(model.examples[event.index], threshold, merge)

        gallery.select(opened_example, [threshold, merge], everything, **through_the_model)


def _thumbnails(examples: Sequence[Path], limits: Limits) -> list[tuple[Path, Image.Image]]:
    if len(examples) > MOST_EXAMPLES:
        warnings.warn(
            f"examples: the first {MOST_EXAMPLES} of {len(examples)} are shown",
            DetrKitWarning,
            stacklevel=3,
        )
    thumbnails = []
    for path in examples[:MOST_EXAMPLES]:
        try:
            picture = Image.fromarray(read_limited(path, limits))
        except ImageError as error:
            warnings.warn(f"example left out: {error}", DetrKitWarning, stacklevel=3)
            continue
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        thumbnails.append((path, picture))
    return thumbnails
