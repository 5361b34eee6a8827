"""A training run: started from a config, or resumed in its folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_kit.config import RunConfig, load_config
from detr_kit.errors import DetrKitError
from detr_kit.files import recover_folder, sweep
from detr_kit.training.claim import claimed
from detr_kit.training.continuation import (
    Change,
    changes_of,
    describe,
    require_continuable,
)
from detr_kit.training.display import TrainingDisplay
from detr_kit.training.keeper import Keeper
from detr_kit.training.report import write_run_report
from detr_kit.training.run_files import (
    CONFIG_FILE,
    EPOCHS_FOLDER,
    METRICS_FILE,
    PROCESSES_FOLDER,
    REPORT_FILE,
    RESULTS_FILE,
    read_metrics,
)
from detr_kit.training.session import Session
from detr_kit.training.signals import Stopped, StopSignals
from detr_kit.training.state import EpochRecord, Progress, TrainingState, load_training_state
from detr_kit.training.trainer import Trainer
from detr_kit.training.watchdog import Watchdog


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run in its folder.

    `stopped_by` names the signal that interrupted it just now, if one did.
    """

    folder: Path
    config: RunConfig
    stopped_by: str | None = None

    @property
    def best(self) -> Path:
        """The checkpoint with the highest `evaluation.metric` on the validation split."""
        return self.folder / "best"

    @property
    def last(self) -> Path:
        return self.folder / "last"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary an epoch; keys as in `detr_kit.training.run_files`."""
        return read_metrics(self.folder)


def train(
    config: str | Path | RunConfig,
    overrides: Sequence[str] = (),
    *,
    stop_after_epoch: int | None = None,
) -> Run:
    """Train from a YAML file (or a RunConfig) and `key=value` overrides.

    `stop_after_epoch` ends the run early, to be resumed. The first SIGTERM or SIGINT ends it after
    the step at hand, with its state saved. Raises DetrKitError for anything wrong with config or
    data before anything is written.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config, overrides)
    elif overrides:
        raise DetrKitError("overrides need a config file; change the RunConfig itself instead")
    _require_free(config.output)
    return _execute(config, None, changes={}, stop_after_epoch=stop_after_epoch)


def _require_free(folder: Path) -> None:
    """Refuse a folder whose checkpoints a new run would replace."""
    recover_folder(folder / "last")
    if (folder / "last").exists():
        raise DetrKitError(
            f"{folder}: already holds a run; continue it with `detr-kit resume {folder}` or choose "
            f"another folder with output=..."
        )
    for left in (folder / "best", folder / EPOCHS_FOLDER):
        if left.exists():
            raise DetrKitError(
                f"{left}: is of another run, which cannot be continued as it has no last/; move it "
                f"away, or choose another folder with output=..."
            )


def resume(
    folder: str | Path, overrides: Sequence[str] = (), *, stop_after_epoch: int | None = None
) -> Run:
    """Continue the run in `folder` from the step that was saved last.

    `overrides` may change what does not make another run of it, as `epochs` or `batch_size`; each
    step holds the same pictures as before, however many processes and batches share them. A
    finished run is left alone. Raises DetrKitError for a change that is none of these, and where
    data or state are not those of the run.
    """
    folder = Path(folder)
    recover_folder(folder / "last")
    before = load_config(folder / CONFIG_FILE)
    config = load_config(folder / CONFIG_FILE, overrides)
    changes = changes_of(before, config)
    require_continuable(changes)
    if config.output.resolve() != folder.resolve():  # the folder was moved or renamed
        config = config.model_copy(update={"output": folder})
    state = load_training_state(folder / "last")
    return _execute(config, state, changes=changes, stop_after_epoch=stop_after_epoch)


def _execute(
    config: RunConfig,
    state: TrainingState | None,
    *,
    changes: Mapping[str, Change],
    stop_after_epoch: int | None,
) -> Run:
    # From here on: what is set up now need not be set up again.
    with StopSignals() as signals:
        return _set_up_and_train(
            config, state, signals, changes=changes, stop_after_epoch=stop_after_epoch
        )


def _set_up_and_train(
    config: RunConfig,
    state: TrainingState | None,
    signals: StopSignals,
    *,
    changes: Mapping[str, Change],
    stop_after_epoch: int | None,
) -> Run:
    session = Session(config, resumed=state)
    config = session.config
    progress, record = Progress(metric=config.evaluation.metric), EpochRecord()
    if state is not None:
        progress, record = state.progress, session.restore(state)
    is_main = session.processes.is_main
    with TrainingDisplay(
        total_steps=config.epochs * session.steps_per_epoch,
        done_steps=progress.step,
        enabled=is_main,
    ) as display:
        if progress.is_over(config.epochs, config.evaluation.patience):
            display.message(_finished(config, progress))
            run = Run(config.output, config)
            if is_main and progress.best_epoch and not (run.folder / REPORT_FILE).exists():
                _report(run, display)
            return run
        display.setup(session.setup_rows)
        notes = session.notes + ([] if state is None else describe(changes, session, state))
        for note in notes:
            display.message(note)
        if progress.metric != config.evaluation.metric:
            progress.choose_by(config.evaluation.metric)
        until = config.epochs if stop_after_epoch is None else min(config.epochs, stop_after_epoch)
        stopped_by = _train(session, progress, record, display, signals, until_epoch=until)
        run = Run(config.output, config, stopped_by)
        _say_goodbye(run, progress, display, is_main=is_main)
    return run


def _train(
    session: Session,
    progress: Progress,
    record: EpochRecord,
    display: TrainingDisplay,
    signals: StopSignals,
    *,
    until_epoch: int,
) -> str | None:
    """Run the loop; return the signal that ended it, if one did."""
    config, processes = session.config, session.processes
    watchdog = Watchdog(
        config.output / PROCESSES_FOLDER,
        rank=processes.rank,
        world_size=processes.count,
        minutes=config.guard.hang_minutes,
        say=display.message,
    )
    with ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(claimed(config.output))
            _sweep(config.output)
        stack.enter_context(watchdog)
        keeper = Keeper(session, display=display, signals=signals, watchdog=watchdog)
        trainer = Trainer(
            session.step,
            session.schedule,
            session.loader,
            processes,
            keeper,
            display=display,
            signals=signals,
            watchdog=watchdog,
        )
        stack.callback(session.close)
        stack.callback(keeper.close)
        try:
            keeper.open_folder(progress)
            trainer.fit(progress, record, until_epoch=until_epoch, evaluation=config.evaluation)
        except Stopped:
            return signals.received or "another process"
    return None


def _sweep(folder: Path) -> None:
    """Delete what a run that was cut off has left half-written."""
    for name in ("last", "best", CONFIG_FILE, METRICS_FILE, RESULTS_FILE, REPORT_FILE):
        sweep(folder / name)
    for epoch in (folder / EPOCHS_FOLDER).glob(".*"):
        shutil.rmtree(epoch, ignore_errors=True)


def _finished(config: RunConfig, progress: Progress) -> str:
    if progress.epoch < config.epochs:
        return (
            f"{config.output}: finished early after epoch {progress.epoch}, "
            f"{progress.without_gain} evaluations without a gain of {config.evaluation.metric}; "
            f"train on with a longer evaluation.patience=..."
        )
    return (
        f"{config.output}: finished, {progress.epoch} epochs are trained; "
        f"train on with: detr-kit resume {config.output} epochs={2 * progress.epoch}"
    )


def _say_goodbye(run: Run, progress: Progress, display: TrainingDisplay, *, is_main: bool) -> None:
    if run.stopped_by is not None:
        display.message(
            f"stopped by {run.stopped_by} before step {progress.step}, saved in {run.last}; "
            f"go on with: detr-kit resume {run.folder}"
        )
        return
    if progress.is_over(run.config.epochs, run.config.evaluation.patience) and (
        progress.epoch < run.config.epochs
    ):
        display.message(
            f"no gain of {run.config.evaluation.metric} in {progress.without_gain} evaluations: "
            f"the training ends here"
        )
    elif progress.epoch < run.config.epochs:
        display.message(f"stopped early; go on with: detr-kit resume {run.folder}")
    if is_main and progress.best_epoch:
        _report(run, display)
    metric = run.config.evaluation.metric
    best = f"{run.best} (epoch {progress.best_epoch}, highest {metric}), "
    display.message(
        f"checkpoints: {best if progress.best_epoch else ''}{run.last}; "
        f"figures: {run.folder / METRICS_FILE}"
    )


def _report(run: Run, display: TrainingDisplay) -> None:
    try:
        path = write_run_report(run.folder, run.config)
    except Exception as error:  # whatever it is, the training has come to its end all the same
        fault = error if isinstance(error, DetrKitError | OSError) else repr(error)
        display.message(
            f"warning: no report was written: {fault}; try again with: detr-kit report {run.folder}"
        )
    else:
        display.message(f"report: {path}")
