"""What may change when a run goes on, and what a change means for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from detr_kit.config import RunConfig
from detr_kit.errors import DetrKitError
from detr_kit.training.session import Session
from detr_kit.training.state import TrainingState

Change = tuple[Any, Any]  # the old value and the new one

# Keys, and sections with all of theirs, whose change leaves model, data and their order alone.
_CHANGEABLE = (
    "batch_size",
    "checkpoint",
    "compile",
    "data.num_workers",
    "data.on_bad_image",
    "data.train",
    "data.val",
    "epochs",
    "evaluation",
    "guard",
    "optimizer.clip",
    "optimizer.lr",
    "optimizer.lr_backbone",
    "precision",
    "schedule",
    "sharding",
    "trackers",
)


def changes_of(before: RunConfig, after: RunConfig) -> dict[str, Change]:
    """Return old and new values by dotted key."""
    old, new = (dict(_flat(config.model_dump(mode="json"))) for config in (before, after))
    return {
        key: (old.get(key), new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    }


def require_continuable(changed: Iterable[str]) -> None:
    """Raise DetrKitError for a key whose change would make another run of it."""
    for key in changed:
        if not any(key == free or key.startswith(f"{free}.") for free in _CHANGEABLE):
            raise DetrKitError(
                f"key {key!r} cannot change when a run goes on, only {', '.join(_CHANGEABLE)} can"
            )


def describe(changes: Mapping[str, Change], session: Session, state: TrainingState) -> list[str]:
    """Say what changes, of the config and of the number of processes, do to a resumed run."""
    progress, steps = state.progress, session.steps_per_epoch
    notes = [
        f"goes on in epoch {progress.epoch + 1}, after {progress.step_in_epoch} of {steps} steps"
    ]
    notes += [
        session.schedule.describe_change(state.progress.step, old)
        if key == "epochs"
        else f"changed: {key} from {old} to {new}"
        for key, (old, new) in changes.items()
    ]
    if state.progress.metric != session.config.evaluation.metric:
        notes.append(
            f"`best` is chosen by {session.config.evaluation.metric} from the next evaluation on"
        )
    processes = session.processes.count
    if processes != len(state.records):
        notes.append(
            f"processes: {processes} instead of {len(state.records)}; every step holds the same "
            f"{session.step_images} pictures as it would have, in the same order, shared by "
            f"{processes}; sums are rounded otherwise and dropout draws other numbers, so that "
            f"the run is as good, but not bit for bit the same"
        )
    return notes


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
