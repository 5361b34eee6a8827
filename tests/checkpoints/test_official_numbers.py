"""What weights and settings of an official checkpoint say together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detr_kit.checkpoints.official import open_official
from detr_kit.errors import DetrKitError
from tests.parity.official import sample_reference


def test_args_and_weights_that_disagree_are_a_file_cut_off(
    official_tensors: Callable[..., dict[str, Tensor]],
) -> None:
    tensors = official_tensors("detr")
    opened = open_official(tensors, source="x", args={"nheads": 2, "dec_layers": 1})
    assert opened.spec.architecture["decoder_layers"] == 1
    with pytest.raises(DetrKitError, match="args say dec_layers 6, its weights 1: it is"):
        open_official(tensors, source="x", args={"nheads": 2, "dec_layers": 6})


def test_a_depth_that_was_not_published_is_told() -> None:
    keys = sample_reference("detr_r50").keys
    cut = {k: s for k, s in keys.items() if not k.startswith("transformer.decoder.layers.5.")}
    notes = open_official({k: torch.zeros(s) for k, s in cut.items()}, source="detr-r50.pth").notes
    assert "decoder_layers 5, where 6 are published" in notes
