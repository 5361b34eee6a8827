"""What a model took over from a file of weights, for a person to read before training."""

from __future__ import annotations

from dataclasses import dataclass

from detr_kit.checkpoints.listing import listed

_SHOWN = 4  # names of tensors


@dataclass(frozen=True)
class LoadReport:
    """Which tensors came from `source`.

    `loaded` names the model's tensors that did, `missing` those that it has nothing for,
    `partial` those that took only some rows from it, or resampled ones (other classes, queries or
    position grids); `dropped` names what the source holds and the model has no place for. `notes`
    say in a line each what became of classes, queries and positions, and what to watch for.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what was kept, kept in part, initialised and dropped, then the notes."""
        lines = [f"{len(self.loaded)} tensors loaded from {self.source}"]
        for kind, names in (
            ("loaded in part", self.partial),
            ("left as initialised", self.missing),
            ("dropped", self.dropped),
        ):
            if names:
                lines.append(f"{len(names)} {kind} ({listed(names, _SHOWN)})")
        return [*lines, *self.notes]

    def summary(self) -> str:
        """Return the same as one line, for a log."""
        return "; ".join(self.lines())
