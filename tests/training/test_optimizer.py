"""Parameter groups of the recipes, their rates, and updates that are left out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detr_kit.config import ModelConfig, OptimizerConfig, ScheduleConfig, load_config
from detr_kit.errors import DetrKitError
from detr_kit.models.backbones import Backbone
from detr_kit.models.zoo import build_model, resolve
from detr_kit.structures import ImageBatch
from detr_kit.training.optimizer import (
    backbone_layers,
    build_optimizer,
    freeze_backbone_if_asked,
    parameter_groups,
    rate_factor,
)
from detr_kit.training.schedule import Schedule

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class TinyDetector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.weight = nn.Parameter(torch.zeros(2, 2))
        self.backbone.norm = nn.Parameter(torch.zeros(2))
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, 3, 2))
        self.backbone.mid_pos_embed = nn.Parameter(torch.zeros(1, 3, 2))
        self.head = nn.Linear(2, 2)


def tiny_yolos(depth: int = 4) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(
        name="yolos_small",
        hidden_dim=16,
        num_heads=2,
        feedforward_dim=16,
        depth=depth,
        num_queries=3,
        position_size_hw=(32, 32),
        mid_position_size_hw=(32, 32),
    )
    return build_model(resolve(config), num_classes=2)


def tiny_detr(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(
        name="detr_small",
        hidden_dim=16,
        num_heads=2,
        feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=3,
        **{"backbone": "plain", **changes},
    )
    return build_model(resolve(config), num_classes=2)


def settings_by_name(model: nn.Module, config: OptimizerConfig) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }


def test_detr_gives_the_backbone_its_own_rate_and_decays_all() -> None:
    found = settings_by_name(TinyDetector(), OptimizerConfig(lr=1e-4, lr_backbone=1e-5))
    assert found == {
        "backbone.weight": (1e-5, 1e-4),
        "backbone.norm": (1e-5, 1e-4),
        "backbone.pos_embed": (1e-5, 1e-4),
        "backbone.mid_pos_embed": (1e-5, 1e-4),
        "head.weight": (1e-4, 1e-4),
        "head.bias": (1e-4, 1e-4),
    }


def test_yolos_spares_vectors_and_tokens_of_the_backbone() -> None:
    found = settings_by_name(TinyDetector(), OptimizerConfig(lr=5e-5, decay="yolos"))
    assert found == {
        "backbone.weight": (5e-5, 1e-4),
        "backbone.norm": (5e-5, 0.0),
        "backbone.pos_embed": (5e-5, 0.0),
        "backbone.mid_pos_embed": (5e-5, 1e-4),
        "head.weight": (5e-5, 1e-4),
        "head.bias": (5e-5, 1e-4),
    }


def test_frozen_parameters_reach_no_group() -> None:
    model = TinyDetector()
    model.backbone.requires_grad_(False)
    assert set(settings_by_name(model, OptimizerConfig())) == {"head.weight", "head.bias"}


# An optimiser's state fits these groups only, in this order.
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("detr_r50", [("backbone", 1e-5, 1e-4, 42), ("rest", 1e-4, 1e-4, 193)]),
        ("detr_small_data", [("backbone", 5e-5, 1e-4, 14), ("rest", 3e-4, 1e-4, 63)]),
        ("quickstart", [("backbone", 5e-4, 1e-4, 18), ("rest", 5e-4, 1e-4, 161)]),
        ("small_data", [("backbone", 1e-4, 1e-4, 15), ("rest", 8e-4, 1e-4, 257)]),
        ("dino_r50_12ep", [("backbone", 1e-5, 1e-4, 42), ("rest", 1e-4, 1e-4, 273)]),
        (
            "yolos_ti",
            [
                ("backbone without decay", 5e-5, 0.0, 102),
                ("backbone", 5e-5, 1e-4, 49),
                ("rest", 5e-5, 1e-4, 12),
            ],
        ),
        (
            "yolos_b",
            [
                ("backbone without decay", 2.5e-5, 0.0, 102),
                ("backbone", 2.5e-5, 1e-4, 50),
                ("rest", 2.5e-5, 1e-4, 12),
            ],
        ),
    ],
)
def test_groups_of_the_recipes(config: str, expected: list[tuple[str, float, float, int]]) -> None:
    run = load_config(CONFIGS / f"{config}.yaml")
    with torch.device("meta"):
        model = build_model(resolve(run.model), num_classes=91)
    groups = parameter_groups(model, run.optimizer)
    assert [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == expected
    order = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    for group in groups:
        places = [order[id(parameter)] for parameter in group["params"]]
        assert places == sorted(places)


@pytest.mark.parametrize("decay", ["detr", "yolos"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_groups_and_their_order_do_not_depend_on_the_rates(decay: str, layer_decay: float) -> None:
    model = tiny_yolos(depth=2)

    def groups(**rates: float) -> list[tuple[str, list[int]]]:
        config = OptimizerConfig(decay=decay, layer_decay=layer_decay, **rates)
        found = parameter_groups(model, config)
        return [(group["name"], [id(p) for p in group["params"]]) for group in found]

    apart = groups(lr=1e-4, lr_backbone=1e-5)
    assert groups(lr=1e-4) == apart
    assert groups(lr=1e-4, lr_backbone=0.5e-4) == apart
    assert groups(lr=1e-4, lr_backbone=1e-5, weight_decay=0.0) == apart
    assert len({name for name, _ in apart}) == len(apart)


@pytest.mark.parametrize("lr_backbone", [1e-4, None])
def test_a_state_of_two_rates_loads_into_one_rate_and_back(lr_backbone: float | None) -> None:
    model = TinyDetector()
    two = OptimizerConfig(lr=1e-4, lr_backbone=1e-5)
    one = OptimizerConfig(lr=1e-4, lr_backbone=lr_backbone)
    for before, after in ((two, one), (one, two)):
        optimizer = build_optimizer(model, before, step_images=16)
        for number, parameter in enumerate(model.parameters(), 1):
            parameter.grad = torch.full_like(parameter, number)
        optimizer.step()
        fresh = build_optimizer(model, after, step_images=16)
        fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for parameter in model.parameters():
            moment = optimizer.state[parameter]["exp_avg"]
            assert torch.equal(fresh.state[parameter]["exp_avg"], moment)


def test_an_optimizer_state_without_names_still_loads() -> None:
    model = TinyDetector()
    config = OptimizerConfig(lr=1e-4, lr_backbone=1e-5)
    optimizer = build_optimizer(model, config, step_images=16)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        del group["name"]
        group["lr"] = 7.0  # the rate of the last step, which the schedule sets anew

    fresh = build_optimizer(model, config, step_images=16)
    constant = ScheduleConfig(kind="constant")
    schedule = Schedule(fresh, constant, steps_per_epoch=1, epochs=1)
    fresh.load_state_dict(state)
    schedule.apply(0)
    assert schedule.rates() == {"backbone": 1e-5, "rest": 1e-4}
    for parameter in model.parameters():
        assert torch.equal(fresh.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_layers_of_a_vit_are_its_embedding_and_its_blocks() -> None:
    model = tiny_yolos(depth=3)
    layers = backbone_layers(model)
    assert set(layers) == {
        name for name, _ in model.named_parameters() if name.startswith("backbone.")
    }
    of_block = {name: layer for name, layer in layers.items() if ".blocks." in name}
    assert all(layer == int(name.split(".")[2]) + 1 for name, layer in of_block.items())
    assert {name: layer for name, layer in layers.items() if name not in of_block} == {
        "backbone.cls_token": 0,
        "backbone.pos_embed": 0,
        "backbone.patch_embed.proj.weight": 0,
        "backbone.patch_embed.proj.bias": 0,
        "backbone.det_token": 3,
        "backbone.mid_pos_embed": 3,
        "backbone.norm.weight": 3,
        "backbone.norm.bias": 3,
    }


def test_layer_decay_of_a_yolos() -> None:
    model = tiny_yolos(depth=3)
    config = OptimizerConfig(lr=1e-3, lr_backbone=1e-4, decay="yolos", layer_decay=0.5)
    found = settings_by_name(model, config)
    assert found["backbone.pos_embed"] == (1e-4 / 8, 0.0)
    assert found["backbone.blocks.0.mlp.fc1.weight"] == (1e-4 / 4, 1e-4)
    assert found["backbone.blocks.2.mlp.fc1.weight"] == (1e-4, 1e-4)
    assert found["backbone.norm.weight"] == (1e-4, 0.0)
    assert found["heads.class_head.layers.0.weight"] == (1e-3, 1e-4)
    assert len(found) == len(list(model.parameters()))


def test_layer_decay_keeps_the_groups_of_backbone_and_heads_apart() -> None:
    groups = parameter_groups(tiny_yolos(depth=1), OptimizerConfig(layer_decay=0.5, decay="yolos"))
    assert sorted(group["name"] for group in groups) == [
        "backbone layer 0",
        "backbone layer 0 without decay",
        "backbone layer 1",
        "backbone layer 1 without decay",
        "rest",
    ]


@pytest.mark.parametrize(
    ("backbone", "options", "expected"),
    [
        (
            "resnet18",
            {},
            {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4},
        ),
        ("resnet50", {"stages": 2}, {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2}),
        ("plain", {}, {"stage1": 0, "stage2": 1, "stage3": 2, "stage4": 3}),
        ("timm/resnet10t", {"stages": 2}, {"conv1": 0, "bn1": 0, "layer1": 1}),
        (
            "timm/convnext_atto",
            {},
            {"stem_0": 0, "stem_1": 0, "stages_0": 0, "stages_1": 1, "stages_2": 2, "stages_3": 3},
        ),
        # A transition belongs to the stage that it leads to.
        (
            "timm/densenet121",
            {"stages": 3},
            {
                "features_conv0": 0,
                "features_norm0": 0,
                "features_denseblock1": 1,
                "features_transition1": 2,
                "features_denseblock2": 2,
            },
        ),
    ],
)
def test_layers_of_a_cnn_are_its_stages(
    backbone: str, options: dict[str, Any], expected: dict[str, int]
) -> None:
    if backbone.startswith("timm/"):
        pytest.importorskip("timm")
    model = nn.Module()
    model.backbone = Backbone(backbone, norm="batch", padding="official", **options)
    layers = backbone_layers(model)
    assert set(layers) == {name for name, _ in model.named_parameters()}
    found: dict[str, set[int]] = {}
    for name, layer in layers.items():
        found.setdefault(name.split(".")[2], set()).add(layer)
    assert found == {part: {layer} for part, layer in expected.items()}


def test_layers_of_a_timm_cnn_whose_stages_hold_several_blocks() -> None:
    pytest.importorskip("timm")
    model = nn.Module()
    model.backbone = Backbone("timm/tf_efficientnet_lite0", norm="batch", padding="official")
    layers = backbone_layers(model)
    found = {name.split(".")[3]: i for name, i in layers.items() if ".blocks." in name}
    assert found == {"0": 0, "1": 1, "2": 2, "3": 3, "4": 3, "5": 4, "6": 4}


def test_a_backbone_without_known_layers_is_refused() -> None:
    with pytest.raises(DetrKitError, match=r"optimizer.layer_decay: the layers of a Module"):
        parameter_groups(TinyDetector(), OptimizerConfig(layer_decay=0.9))
    model = nn.Module()
    pytest.importorskip("timm")
    model.backbone = Backbone("timm/hrnet_w18_small", norm="batch", padding="official")
    with pytest.raises(DetrKitError, match="timm/hrnet_w18_small has no module 'stem'"):
        parameter_groups(model, OptimizerConfig(layer_decay=0.9))


@pytest.mark.parametrize(
    ("rule", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)], ids=str
)
def test_rates_are_scaled_to_the_images_of_a_step(rule: str, factor: float) -> None:
    config = OptimizerConfig(lr=1e-3, lr_backbone=1e-4, recipe_batch=4, scale_lr=rule)
    assert rate_factor(config, 16) == factor
    optimizer = build_optimizer(TinyDetector(), config, step_images=16)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"backbone": 1e-4 * factor, "rest": 1e-3 * factor}


def test_rates_are_scaled_down_for_a_smaller_step() -> None:
    assert rate_factor(OptimizerConfig(recipe_batch=16, scale_lr="linear"), 2) == 1 / 8


def test_scaling_needs_the_recipes_batch() -> None:
    with pytest.raises(DetrKitError, match=r"scale_lr=sqrt needs optimizer.recipe_batch"):
        build_optimizer(TinyDetector(), OptimizerConfig(scale_lr="sqrt"), step_images=16)


def stepped(*gradients: float, found_inf: float | None = None) -> tuple[Any, Any]:
    """Return the states of a model and its optimiser after a step for each gradient.

    `found_inf` is set for the last of them.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    for index, gradient in enumerate(gradients):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        if index == len(gradients) - 1 and found_inf is not None:
            optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
    return model.state_dict(), optimizer.state_dict()["state"]


def assert_same_bits(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=False)


def test_an_update_with_found_inf_changes_nothing() -> None:
    """The trainer relies on it: the update is left out on the device, the host reads nothing."""
    weights, moments = stepped(0.5, float("nan"), found_inf=1.0)
    expected_weights, expected_moments = stepped(0.5)
    assert_same_bits(weights, expected_weights)
    assert_same_bits(moments, expected_moments)
    assert all(float(state["step"]) == 1 for state in moments.values())


def test_nan_gradients_without_found_inf_spoil_the_weights() -> None:
    weights, _ = stepped(0.5, float("nan"))
    assert all(tensor.isnan().all() for tensor in weights.values())


def test_an_update_with_found_inf_of_zero_is_the_plain_one() -> None:
    weights, moments = stepped(0.5, 0.25, found_inf=0.0)
    plain_weights, plain_moments = stepped(0.5, 0.25)
    assert_same_bits(weights, plain_weights)
    assert_same_bits(moments, plain_moments)
    assert all(float(state["step"]) == 2 for state in moments.values())


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("whole_backbone", [False, True], ids=["frozen_stages", "lr_backbone=0"])
def test_what_is_frozen_keeps_every_bit_and_holds_no_gradient(
    norm: str, whole_backbone: bool
) -> None:
    model = tiny_detr(backbone_norm=norm, frozen_stages=0 if whole_backbone else 2)
    config = OptimizerConfig(lr=0.01, lr_backbone=0 if whole_backbone else None, weight_decay=0.1)
    freeze_backbone_if_asked(model, config)
    model.train()
    optimizer = build_optimizer(model, config, step_images=2)
    frozen = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name.startswith("backbone.")
        and (whole_backbone or "stage1." in name or "stage2." in name)
    }
    trained = {name: p.clone() for name, p in model.named_parameters() if name not in frozen}
    batch = ImageBatch.from_images(list(torch.randn(2, 3, 64, 64)))
    for _ in range(3):
        output = model(batch)
        (output.logits.square().sum() + output.boxes_cxcywh.sum()).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (name in frozen), name
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert len(frozen) > 0
    assert_same_bits({name: after[name] for name in frozen}, frozen)
    assert all(not torch.equal(after[name], old) for name, old in trained.items())
