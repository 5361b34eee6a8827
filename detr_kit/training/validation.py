"""Scoring the validation split while a run trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from detr_kit.checkpoints.detector import DetectorSpec
from detr_kit.data.dataset import warn_of_skipped
from detr_kit.data.loading import Batch, noting_skipped
from detr_kit.errors import DetrKitError
from detr_kit.evaluation.coco import CocoMetrics, evaluate_results
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.ground_truth import GroundTruth
from detr_kit.evaluation.results import joined, result_columns
from detr_kit.prediction import predict_batches
from detr_kit.training.average import WeightAverage
from detr_kit.training.processes import Processes
from detr_kit.training.sharding import gathered
from detr_kit.training.signals import Stopped, StopSignals

T = TypeVar("T")


class Validation:
    """Scores the weights that `model` holds, or their `average` where there is one.

    Every process predicts the share that `loader` gives it; all get the metrics and, in `found`,
    what was found in the whole split.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader[Batch],
        truth: GroundTruth,
        spec: DetectorSpec,
        *,
        device: torch.device,
        processes: Processes,
        average: WeightAverage | None = None,
    ) -> None:
        self.model = model
        self.loader = loader
        self.truth = truth
        self.spec = spec
        self.device = device
        self.processes = processes
        self.average = average
        self.found: ResultColumns | None = None

    def evaluate(self, signals: StopSignals, alive: Callable[[], None]) -> CocoMetrics:
        """Return the metrics; `alive` is called before every batch.

        Raises Stopped in every process where one was asked to stop meanwhile.
        """
        skipped: list[str] = []
        images = noting_skipped(_until_stopped(self.loader, signals, alive), skipped)
        # Processes have different numbers of batches: forwards must not wait for each other.
        with self.weights(), gathered(self.model):
            if self.processes.count > 1:
                share_buffers(self.model)
            found = predict_batches(
                self.model,
                images,
                categories=self.spec.categories,
                preprocessing=self.spec.preprocessing,
                device=self.device,
            )
            own = result_columns(dict(found))
        warn_of_skipped(skipped)
        [stopped] = self.processes.sum([float(signals.received is not None)])
        if stopped:
            raise Stopped
        self.found = joined(self.processes.gather(own))
        # An untrained detector may well find nothing; the table of the epoch says so.
        return evaluate_results(self.found, self.truth, warn=False)

    def weights(self) -> AbstractContextManager[Any]:
        """Let the model hold the weights that are evaluated for a while."""
        return nullcontext() if self.average is None else self.average.applied()


def require_metric(metric: str, truth: GroundTruth, annotations: object) -> None:
    """Raise DetrKitError where `metric` is none, or can have no value in this split."""
    values = evaluate_results(result_columns({}), truth, warn=False).to_dict()
    known = [name for name in values if name.startswith(("ap", "ar_")) and "interval" not in name]
    if metric not in known:
        raise DetrKitError(
            f"evaluation.metric: {metric!r} is none of the metrics {', '.join(known)}"
        )
    if values[metric] is None:
        raise DetrKitError(
            f"evaluation.metric: {metric} has no value where there is no such object: "
            f"{annotations} has none"
        )


def _until_stopped(
    batches: Iterable[T], signals: StopSignals, alive: Callable[[], None]
) -> Iterator[T]:
    for batch in batches:
        if signals.received is not None:
            return
        alive()
        yield batch


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first.

    Batch norms that train gather statistics of their own in every process, and so do averages of
    them. The first one's are saved, so all must predict with them.
    """
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)
