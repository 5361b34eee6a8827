"""The report of a run: what its best checkpoint does in the validation split, and how it got so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from detr_kit.config import RunConfig, load_config
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.analysis import analyse
from detr_kit.evaluation.bootstrap import ap_interval
from detr_kit.evaluation.coco import evaluation_of
from detr_kit.evaluation.ground_truth import load_ground_truth
from detr_kit.files import is_one_of
from detr_kit.training.run_files import (
    CONFIG_FILE,
    METRICS_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    read_metrics,
)
from detr_kit.visualization.evaluation_report import write_evaluation_report


def write_run_report(
    folder: str | Path, config: RunConfig | None = None, *, out: str | Path | None = None
) -> Path:
    """Write the HTML report of a run, by default into its folder, and return its path.

    From the results of the best checkpoint and the record of the run; `config` is read from the
    folder unless given. Raises DetrKitError where the run was not evaluated yet, or where the
    annotations of its validation split are gone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DetrKitError(f"{folder}: no such run")
    out = folder / REPORT_FILE if out is None else Path(out)
    config = config or load_config(folder / CONFIG_FILE)
    if config.data.val is None:
        raise DetrKitError(f"{folder / CONFIG_FILE}: it has no data.val to report on")
    results = folder / RESULTS_FILE
    if not results.exists():
        best = folder / "best"
        advice = f"; `detr-kit eval {best} ... --html FILE` writes one" if best.exists() else ""
        raise DetrKitError(f"{results}: no such file, so there is nothing to report on{advice}")
    inputs = [folder / CONFIG_FILE, folder / METRICS_FILE, results, config.data.val.annotations]
    if is_one_of(out, inputs):
        raise DetrKitError(f"{out}: it is a file of the run; choose another to write")
    images = config.data.val.images
    truth = load_ground_truth(config.data.val.annotations, on_bad_box=config.data.on_bad_box)
    evaluation = evaluation_of(results, truth, warn=False)  # the report shows the doubts
    metrics = replace(evaluation.metrics, ap_interval=ap_interval(evaluation))
    history = read_metrics(folder)
    write_evaluation_report(
        analyse(replace(evaluation, metrics=metrics)),
        out,
        images=images if images.is_dir() else None,  # moved meanwhile: told in words
        history=history,
        title=folder.resolve().name,
        subtitle=f"best checkpoint on {config.data.val.annotations}",
    )
    return out
