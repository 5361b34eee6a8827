"""References of transformers with drawn weights, and the folders that they were saved to."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from detr_kit.checkpoints.keymap import KeyMap
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.structures import ImageBatch
from tests.parity.hf_models import BOUND, Pair, load_ours, output_difference, save_reference

Drawn = Callable[[str], nn.Module]


@dataclass(frozen=True)
class Saved:
    name: str
    reference: nn.Module
    folder: Path

    @property
    def is_rtdetr(self) -> bool:
        return self.name.startswith("rtdetr")

    @property
    def selects(self) -> bool:
        """Whether queries are the best tokens: in float32, sides may take others of near ties."""
        return self.is_rtdetr or self.name.endswith("two_stage")

    def pair(self, build_as: Mapping[str, Any] | None = None, **architecture: str) -> Pair:
        """Return ours, newly loaded, and a reference of its own."""
        ours = load_ours(self.folder, build_as=build_as, **architecture)
        return Pair(ours, copy.deepcopy(self.reference))

    def key_map(self) -> KeyMap:
        key_map = open_checkpoint(self.folder).key_map
        assert key_map is not None
        return key_map


def saved_fixture(names: Iterable[str], drawn: Drawn, slow: Collection[str]) -> Any:
    """Return a fixture that gives each reference in turn, saved."""

    @pytest.fixture(
        scope="module",
        params=[
            pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names
        ],
    )
    def saved(
        request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Saved]:
        folder = tmp_path_factory.mktemp(request.param)
        reference = drawn(request.param)
        save_reference(reference, folder)
        yield Saved(request.param, reference, folder)
        shutil.rmtree(folder)  # pytest would keep some hundred megabytes of three runs

    return saved


def faultless_fixture(drawn: Drawn, batches: Callable[[Saved], list[ImageBatch]]) -> Any:
    """Return a fixture that saves the reference of a name, which shows no difference yet.

    It keeps the last one only.
    """

    @pytest.fixture(scope="module")
    def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Saved]]:
        kept: list[Saved] = []

        def drop() -> None:
            for old in kept:
                shutil.rmtree(old.folder)
            kept.clear()

        def get(name: str) -> Saved:
            if not kept or kept[0].name != name:
                drop()
                kept.append(Saved(name, drawn(name), tmp_path_factory.mktemp(name)))
                save_reference(kept[0].reference, kept[0].folder)
                pair = Pair(load_ours(kept[0].folder, padding="official"), kept[0].reference)
                assert output_difference(pair, batches(kept[0])) <= BOUND
            return kept[0]

        yield get
        drop()

    return saved
