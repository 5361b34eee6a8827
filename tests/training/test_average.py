"""The moving average of weights: its numbers, its swapping, its state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from detr_kit.config import AverageConfig, ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch
from detr_kit.training.average import WeightAverage, decay_at


class Normed(nn.Module):
    """A trained layer, a frozen one, running statistics, a counter and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(3, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)
        self.register_buffer("constant", torch.tensor([float("-inf")]))

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.norm(self.trained(x)))


@pytest.fixture
def model() -> Normed:
    torch.manual_seed(0)
    return Normed()


def train_a_step(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


AVERAGED = {
    "trained.weight",
    "norm.weight",
    "norm.bias",
    "norm.running_mean",
    "norm.running_var",
}


def test_decay_rises_from_0_and_is_reached_when_the_warmup_ends() -> None:
    config = AverageConfig(decay=0.99, warmup_steps=200)
    decays = [decay_at(step, config) for step in range(300)]
    assert decays[0] == 0
    assert decays == sorted(decays)
    assert decays[199] < 0.99
    assert decays[200:] == [0.99] * 100
    # How far it reaches back grows by the same number of steps with every step.
    reaches = [1 / (1 - decay) for decay in decays[:200]]
    assert reaches[1:] == pytest.approx([before + 99 / 200 for before in reaches[:-1]])


def test_decay_without_warmup_is_constant() -> None:
    assert {decay_at(step, AverageConfig(decay=0.9)) for step in range(5)} == {0.9}


def test_the_average_follows_its_formula(model: Normed) -> None:
    config = AverageConfig(decay=0.9, warmup_steps=3)
    average = WeightAverage(model, config)
    expected = {name: copied(model)[name].double() for name in AVERAGED}
    for step in range(6):
        train_a_step(model)
        average.update(step)
        decay = decay_at(step, config)
        for name, tensor in copied(model).items():
            if name in AVERAGED:
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    found = {name: tensor.double() for name, tensor in average.state_dict().items()}
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_warmup_as_long_as_the_reach_gives_the_plain_mean(model: Normed) -> None:
    average = WeightAverage(model, AverageConfig(decay=0.99, warmup_steps=99))
    seen = []
    for step in range(5):
        train_a_step(model)
        average.update(step)
        seen.append(model.trained.weight.detach().clone())
    torch.testing.assert_close(average.state_dict()["trained.weight"], torch.stack(seen).mean(0))


def test_what_training_leaves_alone_is_not_stored(model: Normed) -> None:
    average = WeightAverage(model, AverageConfig(decay=0.9))
    assert set(average.state_dict()) == AVERAGED
    assert not any(tensor.requires_grad for tensor in average.state_dict().values())


def test_a_frozen_norm_is_not_stored(model: Normed) -> None:
    model.norm.requires_grad_(False)
    average = WeightAverage(model, AverageConfig(decay=0.9))
    assert set(average.state_dict()) == {"trained.weight"}


def test_applied_gives_averages_and_gives_all_back(model: Normed) -> None:
    average = WeightAverage(model, AverageConfig(decay=0.5))
    train_a_step(model)
    average.update(0)
    own = copied(model)
    tensors = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    averages = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    with average.applied():
        inside = copied(model)
    assert_same_bits({name: inside[name] for name in AVERAGED}, averages)
    assert_same_bits(
        {name: tensor for name, tensor in inside.items() if name not in AVERAGED},
        {name: tensor for name, tensor in own.items() if name not in AVERAGED},
    )
    assert not torch.equal(inside["trained.weight"], own["trained.weight"])
    assert int(inside["norm.num_batches_tracked"]) == 1
    assert_same_bits(copied(model), own)
    assert_same_bits(average.state_dict(), averages)
    assert tensors == {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}


def test_the_models_own_weights_come_back_after_an_error(model: Normed) -> None:
    average = WeightAverage(model, AverageConfig(decay=0.5))
    train_a_step(model)
    average.update(0)
    own = copied(model)

    def fail() -> None:
        with average.applied():
            assert not torch.equal(model.trained.weight, own["trained.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert_same_bits(copied(model), own)


def test_training_goes_on_as_if_nothing_had_been_applied() -> None:
    def weights(applies: bool) -> dict[str, Tensor]:
        torch.manual_seed(3)
        model = Normed()
        optimizer = torch.optim.AdamW(model.trained.parameters(), lr=0.1, fused=True)
        average = WeightAverage(model, AverageConfig(decay=0.9, warmup_steps=2))
        for step in range(4):
            model.train()(torch.randn(8, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(step)
            if applies:
                with average.applied(), torch.inference_mode():
                    model.eval()(torch.ones(1, 3))
        return copied(model)

    assert_same_bits(weights(True), weights(False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(model: Normed, dtype: torch.dtype) -> None:
    model.to(dtype)
    average = WeightAverage(model, AverageConfig(decay=0.999))
    start = model.trained.weight.detach().float()
    with torch.no_grad():
        model.trained.weight.add_(1.0)
    moved = model.trained.weight.detach().float()
    average.update(0)
    found = average.state_dict()["trained.weight"]
    assert found.dtype == torch.float32
    # A thousandth of the way: less than the half precision's next number.
    torch.testing.assert_close(found, start + 0.001 * (moved - start), rtol=1e-6, atol=1e-7)
    own = copied(model)
    with average.applied():
        assert_same_bits(model.trained.weight.detach(), found.to(dtype))
    assert_same_bits(copied(model), own)


def test_float64_stays_float64(model: Normed) -> None:
    average = WeightAverage(model.double(), AverageConfig(decay=0.9))
    assert {tensor.dtype for tensor in average.state_dict().values()} == {torch.float64}


def test_a_restored_average_goes_on_bit_for_bit(model: Normed, tmp_path: Path) -> None:
    config = AverageConfig(decay=0.9, warmup_steps=4)
    average = WeightAverage(model, config)
    for step in range(3):
        train_a_step(model)
        average.update(step)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    other = copy.deepcopy(model)
    restored = WeightAverage(other, config)
    restored.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    assert_same_bits(restored.state_dict(), average.state_dict())
    for each, of in ((average, model), (restored, other)):
        torch.manual_seed(1)
        train_a_step(of)
        each.update(3)
    assert_same_bits(restored.state_dict(), average.state_dict())


def test_averages_of_other_parameters_are_refused(model: Normed) -> None:
    state = WeightAverage(model, AverageConfig(decay=0.9)).state_dict()
    model.frozen.requires_grad_(True)
    thawed = WeightAverage(model, AverageConfig(decay=0.9))
    with pytest.raises(DetrKitError, match=r"trained now: frozen\.bias, 2 in all"):
        thawed.load_state_dict(state)
    state = thawed.state_dict() | {"trained.weight": torch.zeros(4, 9)}
    with pytest.raises(DetrKitError, match=r"trained now: trained\.weight, 1 in all"):
        thawed.load_state_dict(state)


TINY_YOLOS = ModelConfig(
    name="yolos_small",
    hidden_dim=16,
    num_heads=2,
    feedforward_dim=16,
    depth=2,
    num_queries=3,
    position_size_hw=(32, 32),
    mid_position_size_hw=(32, 32),
)


def test_cached_positions_follow_the_swap_and_the_way_back() -> None:
    """Predictions under averages are those of a model that was loaded with them."""
    torch.manual_seed(0)
    numbers = resolve(TINY_YOLOS)
    model = build_model(numbers, num_classes=2).eval()
    average = WeightAverage(model, AverageConfig(decay=0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    average.update(0)
    batch = ImageBatch.from_images([torch.randn(3, 48, 64)])  # not the table's size: resampled
    loaded = build_model(numbers, num_classes=2).eval()
    loaded.load_state_dict(model.state_dict() | average.state_dict())
    with torch.inference_mode():
        own = model(batch).logits
        expected = loaded(batch).logits
    # train() and eval(), which clear the cache too, are not called on the way.
    for _ in range(2):
        with average.applied(), torch.inference_mode():
            assert_same_bits(model(batch).logits, expected)
        with torch.inference_mode():
            assert_same_bits(model(batch).logits, own)
    assert not torch.equal(own, expected)


def test_a_sharded_model_gathers_its_weights_anew(tmp_path: Path) -> None:
    """FSDP may keep gathered weights after a forward; they are not those swapped in."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        average = WeightAverage(model, AverageConfig(decay=0.5))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
            average.update(0)
            own = model(torch.ones(1, 3))
            with average.applied():
                inside = model(torch.ones(1, 3))
            after = model(torch.ones(1, 3))
        assert not torch.equal(inside, own)
        assert torch.equal(after, own)
    finally:
        torch.distributed.destroy_process_group()
