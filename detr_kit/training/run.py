"""A training run: started from a config, or resumed in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_kit.config import RunConfig, load_config
from detr_kit.errors import DetrKitError
from detr_kit.files import recover_folder
from detr_kit.training.display import TrainingDisplay
from detr_kit.training.report import write_run_report
from detr_kit.training.run_files import CONFIG_FILE, METRICS_FILE, read_metrics
from detr_kit.training.session import Session
from detr_kit.training.state import Progress


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run in its folder."""

    folder: Path
    config: RunConfig

    @property
    def best(self) -> Path:
        """The checkpoint with the highest AP on the validation split."""
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

    `stop_after_epoch` ends the run early, to be resumed. Raises DetrKitError for anything wrong
    with config or data before anything is written.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config, overrides)
    elif overrides:
        raise DetrKitError("overrides need a config file; change the RunConfig itself instead")
    if (config.output / "last").exists():
        raise DetrKitError(
            f"{config.output}: already holds a run; continue it with `detr-kit resume "
            f"{config.output}` or choose another folder with output=..."
        )
    return _execute(config, resume=False, stop_after_epoch=stop_after_epoch)


def resume(folder: str | Path, *, stop_after_epoch: int | None = None) -> Run:
    """Continue the run in `folder` from its last finished epoch; a finished run is left alone."""
    folder = Path(folder)
    recover_folder(folder / "last")
    config = load_config(folder / CONFIG_FILE)
    if config.output.resolve() != folder.resolve():  # the folder was moved or renamed
        config = config.model_copy(update={"output": folder})
    return _execute(config, resume=True, stop_after_epoch=stop_after_epoch)


def _execute(config: RunConfig, *, resume: bool, stop_after_epoch: int | None) -> Run:
    session = Session(config, resumed=resume)
    progress = session.restore() if resume else Progress()
    until = config.epochs if stop_after_epoch is None else min(config.epochs, stop_after_epoch)
    is_main = session.accelerator.is_main_process
    steps_per_epoch = session.steps_per_epoch
    with TrainingDisplay(
        total_steps=config.epochs * steps_per_epoch, done_steps=progress.step, enabled=is_main
    ) as display:
        if progress.epoch >= config.epochs:
            display.message(f"{config.output}: finished, all {config.epochs} epochs are trained")
            return Run(config.output, config)
        display.setup(session.setup_rows)
        if is_main:
            session.open_folder(progress)
        try:
            session.trainer.fit(
                progress,
                until_epoch=until,
                display=display,
                evaluate=session.evaluate,
                finish_epoch=session.finish_epoch,
            )
        finally:
            session.close()
        run = Run(config.output, config)
        if progress.epoch < config.epochs:
            display.message(f"stopped early; go on with: detr-kit resume {run.folder}")
        if is_main and progress.best_epoch:
            _report(run, display)
        best = f"{run.best} (epoch {progress.best_epoch}, highest AP), "
        display.message(
            f"checkpoints: {best if progress.best_epoch else ''}{run.last}; "
            f"figures: {run.folder / METRICS_FILE}"
        )
    return run


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
