from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from detr_kit.checkpoints import pretrained
from detr_kit.checkpoints.pretrained import load_backbone_weights
from detr_kit.checkpoints.reading import read_checkpoint, read_tensors
from detr_kit.checkpoints.report import LoadReport
from detr_kit.config import ModelConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.zoo import build_model, resolve

DETR = {"name": "detr_small", "encoder_layers": 1, "decoder_layers": 1}
YOLOS = {
    "name": "yolos_small",
    "depth": 2,
    "hidden_dim": 24,
    "num_heads": 3,
    "feedforward_dim": 96,
    "num_queries": 5,
    "position_size_hw": (64, 96),
    "mid_position_size_hw": (64, 96),
}


def build(**changes: object) -> nn.Module:
    return build_model(resolve(ModelConfig.model_validate(changes)), 3)


@pytest.fixture
def resnet_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_resnet_weights_load_but_for_the_classifier(resnet_file: Path, norm: str) -> None:
    model = build(**DETR, backbone_norm=norm)
    report = load_backbone_weights(model, str(resnet_file))
    assert report.dropped == ("fc.weight", "fc.bias")
    assert report.missing == ()
    own = model.state_dict()
    source = torch.load(resnet_file, weights_only=True)
    assert torch.equal(own["backbone.body.layer4.1.conv2.weight"], source["layer4.1.conv2.weight"])
    assert torch.equal(own["backbone.body.bn1.weight"], source["bn1.weight"])
    assert set(report.loaded) == {key for key in own if key.startswith("backbone.")}


def test_stages_that_are_not_kept_are_dropped(resnet_file: Path) -> None:
    report = load_backbone_weights(build(**DETR, backbone_stages=3), str(resnet_file))
    assert {key.split(".")[0] for key in report.dropped} == {"layer4", "fc"}


def test_resnet_weights_that_do_not_fit_touch_nothing(resnet_file: Path) -> None:
    model = build(**DETR)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    source = torch.load(resnet_file, weights_only=True)
    for key, change in (
        ("layer1.0.conv1.weight", lambda t: t[:3]),
        ("layer1.0.conv1.weight", None),
    ):
        faulty = dict(source)
        if change is None:
            faulty["stranger.weight"] = faulty.pop(key)
        else:
            faulty[key] = change(faulty[key])
        torch.save(faulty, resnet_file)
        with pytest.raises(DetrKitError, match=r"resnet18\.pth.*layer1\.0\.conv1\.weight") as info:
            load_backbone_weights(model, str(resnet_file))
        if change is None:
            assert "not in the model: stranger.weight" in str(info.value)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("stages", [None, 4])
def test_shared_timm_weights_load_but_for_the_classifier(
    shared_weights: Path, stages: int | None
) -> None:
    timm = pytest.importorskip("timm")
    path = shared_weights / "tf_efficientnet_lite0.safetensors"
    backbone = "timm/tf_efficientnet_lite0"
    model = build(**DETR, backbone=backbone, backbone_norm="frozen", backbone_stages=stages)
    report = load_backbone_weights(model, str(path))
    left = {key.split(".")[0] for key in report.dropped}
    assert left == ({"conv_head", "bn2", "classifier"} | ({"blocks"} if stages else set()))
    assert report.missing == ()
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    theirs.load_state_dict(load_file(path), strict=False)
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(pixels)[-1 if stages is None else stages - 1]
        torch.testing.assert_close(model.backbone._maps(pixels)[-1], expected, rtol=1e-4, atol=1e-4)


def test_timm_names_that_its_feature_wrapper_flattens(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    whole = timm.create_model("convnext_atto")
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    model = build(**DETR, backbone="timm/convnext_atto", padding="official")
    report = load_backbone_weights(model, str(tmp_path / "w.safetensors"))
    assert {key.split(".")[0] for key in report.dropped} == {"head"}
    stage = model.backbone.body.stages_3.blocks[1].mlp.fc1.weight
    assert torch.equal(stage, whole.stages[3].blocks[1].mlp.fc1.weight)


def deit_state(distilled: bool) -> dict[str, torch.Tensor]:
    model = build(**YOLOS)
    generator = torch.Generator().manual_seed(3)
    shapes = {
        key.removeprefix("backbone."): tensor.shape
        for key, tensor in model.state_dict().items()
        if key.startswith("backbone.") and "det_token" not in key and "mid_pos" not in key
    }
    shapes["pos_embed"] = torch.Size([1, 9 + 1 + distilled, 24])
    shapes["head.weight"] = torch.Size([10, 24])
    if distilled:
        shapes["dist_token"] = torch.Size([1, 1, 24])
        shapes["head_dist.weight"] = torch.Size([10, 24])
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@pytest.mark.parametrize("distilled", [False, True])
def test_deit_weights(tmp_path: Path, distilled: bool) -> None:
    source = deit_state(distilled)
    torch.save({"model": source}, tmp_path / "deit.pth")
    model = build(**YOLOS)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = load_backbone_weights(model, str(tmp_path / "deit.pth"))
    expected_drop = {"head.weight", "dist_token", "head_dist.weight"}
    assert set(report.dropped) == (expected_drop if distilled else {"head.weight"})
    assert report.missing == ("backbone.det_token", "backbone.mid_pos_embed")
    vit = model.backbone
    assert torch.equal(vit.blocks[1].attn.qkv.weight, source["blocks.1.attn.qkv.weight"])
    assert torch.equal(vit.cls_token, source["cls_token"])
    positions = source["pos_embed"][:, 1:] if distilled else source["pos_embed"]
    assert torch.equal(vit.pos_embed[:, :1], positions[:, :1])
    grid = positions[:, 1:].transpose(1, 2).reshape(1, 24, 3, 3)
    resampled = F.interpolate(grid, size=(4, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(vit.pos_embed[:, 1:-5], resampled.flatten(2).mT)
    for key in ("backbone.det_token", "backbone.mid_pos_embed"):
        assert torch.equal(model.state_dict()[key], before[key])
    assert torch.equal(vit.pos_embed[:, -5:], before["backbone.pos_embed"][:, -5:])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blocks.1.mlp.fc1.weight", None, "missing in the file: blocks.1.mlp.fc1.weight"),
        ("blocks.7.mlp.fc1.weight", torch.zeros(96, 24), "not in the model: blocks.7"),
        ("patch_embed.proj.weight", torch.zeros(24, 3, 8, 8), r"\(24, 3, 8, 8\) instead of"),
        ("pos_embed", torch.zeros(1, 8, 24), "not that of a class token and a square grid"),
    ],
)
def test_deit_weights_that_do_not_fit(
    tmp_path: Path, key: str, value: torch.Tensor | None, message: str
) -> None:
    source = deit_state(distilled=False)
    source.pop(key, None)
    if value is not None:
        source[key] = value
    torch.save(source, tmp_path / "deit.pth")
    with pytest.raises(DetrKitError, match=rf"deit\.pth.*{message}"):
        load_backbone_weights(build(**YOLOS), str(tmp_path / "deit.pth"))


def test_deit_weights_of_timm_fit_the_named_variants() -> None:
    timm = pytest.importorskip("timm")
    for name in ("yolos_ti", "yolos_s", "yolos_b"):
        numbers = resolve(ModelConfig(name=name))
        with torch.device("meta"):
            vit = build_model(numbers, 3).backbone
            deit = timm.create_model(pretrained.DEIT_BY_WIDTH[numbers["hidden_dim"]])
        own = {key: tensor.shape for key, tensor in vit.state_dict().items()}
        theirs = {key: tensor.shape for key, tensor in deit.state_dict().items()}
        left = {key for key in theirs if own.get(key) != theirs[key] and key != "pos_embed"}
        assert all(key.startswith(pretrained.VIT_CLASSIFIER) for key in left)
        assert set(own) - set(theirs) <= set(pretrained.DETECTION_ONLY)


def test_imagenet_takes_the_librarys_download(
    monkeypatch: pytest.MonkeyPatch, resnet_file: Path
) -> None:
    weights = torchvision.models.ResNet18_Weights
    source = torch.load(resnet_file, weights_only=True)
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: source)
    report = load_backbone_weights(build(**DETR), "imagenet")
    assert report.source == "imagenet"
    assert report.dropped == ("fc.weight", "fc.bias")


def test_imagenet_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", refuse)
    with pytest.raises(DetrKitError, match="resnet18 could not be downloaded") as info:
        load_backbone_weights(build(**DETR), "imagenet")
    assert "\n" not in str(info.value)
    with pytest.raises(DetrKitError, match="none for a ViT 24 wide"):
        load_backbone_weights(build(**YOLOS), "imagenet")


def test_summary_is_one_line() -> None:
    report = LoadReport("w.pth", ("a",), ("b",), ("c", "d", "e", "f", "g"), ("h",))
    assert report.summary() == (
        "1 tensors loaded from w.pth; 1 loaded in part (h); 1 left as initialised (b); "
        "5 dropped (c, d, e, f and 1 more)"
    )


def test_reading_unwraps_and_refuses(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2)}
    for nested in (tensors, {"model": tensors, "epoch": 3}, {"state_dict": tensors}):
        torch.save(nested, tmp_path / "w.pth")
        assert torch.equal(read_tensors(tmp_path / "w.pth")["a"], tensors["a"])
    torch.save({"model": tensors, "args": argparse.Namespace(nheads=4)}, tmp_path / "w.pth")
    content = read_checkpoint(tmp_path / "w.pth")
    assert content.tensors.keys() == {"a"}
    assert content.args == {"nheads": 4}
    save_file(tensors, tmp_path / "w.safetensors")
    assert torch.equal(read_tensors(tmp_path / "w.safetensors")["a"], tensors["a"])


def test_reading_names_the_file_in_every_error(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save({"model": {"a": torch.ones(2)}, "x": Path("a")}, tmp_path / "path.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("none.pth", "text.pth", "empty.pth", "text.safetensors", "path.pth", "list.pth"):
        with pytest.raises(DetrKitError, match=name):
            read_tensors(tmp_path / name)


def test_resnet_weights_of_timm_are_torchvisions(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18").eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    model = build(**DETR, backbone_norm="frozen").eval()
    report = load_backbone_weights(model, str(tmp_path / "resnet18.safetensors"))
    assert report.missing == ()
    pixels = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        ours = model.double().backbone._maps(pixels)[-1]
        expected = theirs.double().forward_features(pixels)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_a_detector_is_no_classifier(tmp_path: Path) -> None:
    model = build(**YOLOS)
    save_file(model.state_dict(), tmp_path / "detector.safetensors")
    for config in (YOLOS, DETR):
        with pytest.raises(DetrKitError, match=r"a detector's weights.*model\.init_from"):
            load_backbone_weights(build(**config), str(tmp_path / "detector.safetensors"))
    with pytest.raises(DetrKitError, match=r"a folder; .*model\.init_from a detector"):
        load_backbone_weights(model, str(tmp_path))


def test_keys_of_parallel_training_lose_their_prefix(tmp_path: Path) -> None:
    tensors = {"module.a": torch.ones(2), "module.b": torch.ones(3)}
    torch.save({"model_ema": tensors}, tmp_path / "w.pth")
    assert read_tensors(tmp_path / "w.pth").keys() == {"a", "b"}
    torch.save({**tensors, "c": torch.ones(1)}, tmp_path / "w.pth")
    assert read_tensors(tmp_path / "w.pth").keys() == {"module.a", "module.b", "c"}
