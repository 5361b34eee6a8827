from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detr_kit.categories import CategoryTable
from detr_kit.errors import DetrKitError
from detr_kit.prediction import predict_batches
from detr_kit.preprocess import Preprocessing
from detr_kit.sizes import SizeRule
from detr_kit.structures import CollatedImages, ImageBatch, ModelOutput

TABLE = CategoryTable((4, 8), ("cat", "dog"))
PREPROCESSING = Preprocessing(SizeRule("square", 8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Brightness(nn.Module):
    """One query, a `cat` whose logit is the mean of the normalised picture."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.scale.weight)
        self.frozen = nn.BatchNorm1d(1).eval()
        self.modes: list[tuple[bool, bool]] = []
        self.seen: list[ImageBatch] = []

    def forward(self, batch: ImageBatch, all_layers: bool | None = None) -> ModelOutput:
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        self.seen.append(batch)
        mean: Tensor = self.scale(batch.pixels.mean(dim=(1, 2, 3))[:, None])
        logits = torch.cat([mean, torch.zeros_like(mean), torch.zeros_like(mean)], dim=1)
        boxes = torch.full((1, len(mean), 1, 4), 0.5, dtype=mean.dtype)
        return ModelOutput(logits[None, :, None, :], boxes)


def gray_batches(levels: list[list[int]]) -> Iterator[CollatedImages]:
    number = 100
    for batch in levels:
        pixels = torch.tensor(batch, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3)
        ids = tuple(range(number, number + len(batch)))
        yield CollatedImages(pixels, ((8, 8),) * len(batch), ((40, 20),) * len(batch), ids)
        number += len(batch)


def predict(model: nn.Module, levels: list[list[int]], **options):  # type: ignore[no-untyped-def]
    return predict_batches(
        model,
        gray_batches(levels),
        categories=TABLE,
        preprocessing=PREPROCESSING,
        device="cpu",
        **options,
    )


def test_ids_order_sizes_and_normalisation() -> None:
    model = Brightness()
    found = list(predict(model, [[255, 0], [128]]))
    assert [image_id for image_id, _ in found] == [100, 101, 102]
    assert [len(detections) for _, detections in found] == [1, 1, 1]
    assert found[0][1].boxes_xyxy.tolist() == [[5, 10, 15, 30]]
    chance = np.exp(2.0) / (np.exp(2.0) + 2)  # (1 - 0.5) / 0.25 = 2
    np.testing.assert_allclose(found[0][1].scores, [chance], rtol=1e-6)
    assert found[1][1].names == ["dog"]  # a logit of -2 against 0
    assert len(list(predict(model, [[255, 0]], threshold=0.5))[1][1]) == 0


def test_no_batches() -> None:
    assert list(predict(Brightness(), [])) == []


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_evaluation_inside_and_as_before_outside(training: bool) -> None:
    model = Brightness().train(training)
    model.frozen.eval()
    for _ in predict(model, [[1], [2]]):
        assert not torch.is_inference_mode_enabled()
        assert not model.training
    assert model.modes == [(False, True)] * 2
    assert model.training is training
    assert model.scale.training is training
    assert not model.frozen.training


def test_mode_is_restored_where_the_caller_stops_early() -> None:
    model = Brightness().train()
    iterator = predict(model, [[1], [2]])
    next(iterator)
    iterator.close()
    assert model.training


def test_mode_is_restored_after_an_error_that_names_the_image() -> None:
    model = Brightness().train()
    nn.init.constant_(model.scale.weight, torch.nan)
    with pytest.raises(DetrKitError, match="not finite for image id 100, id 101"):
        list(predict(model, [[1, 2]], name_of="id {}".format))
    assert model.training


class Told(Brightness):
    """Notes every call that sets its mode, at which modules drop what they remember."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bool] = []

    def train(self, mode: bool = True) -> Told:
        self.told.append(mode)
        return super().train(mode)


def test_the_mode_is_set_only_where_a_module_trains() -> None:
    model = Told().eval()
    list(predict(model, [[1], [2]]))
    assert model.told == [False]  # by this test
    model.scale.train()
    list(predict(model, [[1], [2]]))
    assert model.told == [False, False]
    assert (model.training, model.scale.training, model.modes[-1]) == (False, True, (False, True))


def test_a_model_of_another_precision() -> None:
    model = Brightness()
    (full,) = predict(model, [[200]])
    (double,) = predict(model.double(), [[200]])
    assert model.seen[-1].pixels.dtype == torch.float64
    np.testing.assert_allclose(double[1].scores, full[1].scores, rtol=1e-6)
