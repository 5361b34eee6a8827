"""Loading a classifier's weights into a detector's backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from detr_kit.checkpoints.listing import listed
from detr_kit.checkpoints.reading import read_tensors
from detr_kit.checkpoints.report import LoadReport
from detr_kit.checkpoints.vit_npz import read_vit_npz
from detr_kit.errors import DetrKitError
from detr_kit.models.backbones import Backbone
from detr_kit.models.resampling import resample_grid
from detr_kit.models.trunks import timm_name
from detr_kit.models.vit import ViT

# DeiT's weights by the width of the ViT (YOLOS, table 1): what "imagenet" means for a YOLOS.
DEIT_BY_WIDTH = {
    192: "deit_tiny_patch16_224",
    384: "deit_small_patch16_224",
    768: "deit_base_distilled_patch16_384",
}
# What a ViT classifier holds besides its trunk: heads, and the token of distillation.
VIT_CLASSIFIER = ("head.", "head_dist.", "pre_logits.", "fc_norm.", "dist_token")
# What only detectors have: detr_kit's, the official ones, transformers'.
DETECTOR_KEYS = frozenset(
    {
        "heads.box_head.layers.0.weight",
        "bbox_embed.layers.0.weight",
        "bbox_predictor.layers.0.weight",
    }
)
# What a YOLOS has besides a classifier's trunk: it stays as initialised.
DETECTION_ONLY = (
    "det_token",
    "mid_pos_embed",
    "extra_det_token",
    "extra_pos_embed",
    "extra_mid_pos_embed",
)


def load_backbone_weights(model: nn.Module, source: str) -> LoadReport:
    """Load a file of classifier weights, or the named "imagenet" ones, into `model.backbone`.

    Only the classifier and the stages that the backbone does not keep may be left over, and
    everything of the backbone must be there, but for a YOLOS's detection tokens and mid position
    embeddings. Raises DetrKitError, naming the source and the keys, where that does not hold, and
    where "imagenet" weights cannot be downloaded.
    """
    if Path(source).is_dir():
        raise DetrKitError(
            f"{source}: a folder; model.backbone_weights takes a file of a classifier's weights, "
            "model.init_from a detector"
        )
    backbone = model.backbone
    if isinstance(backbone, ViT):
        return _load_vit(backbone, source)
    if isinstance(backbone, Backbone):
        return _load_cnn(backbone, source)
    raise DetrKitError(f"{source}: {type(backbone).__name__} is no backbone that takes weights")


def _classifier_tensors(source: str) -> dict[str, Tensor]:
    """Read a file; raises DetrKitError where it holds a detector."""
    tensors = read_tensors(source)
    if not DETECTOR_KEYS.isdisjoint(tensors):
        raise DetrKitError(
            f"{source}: a detector's weights, not a classifier's: give them as model.init_from"
        )
    return tensors


def _load_cnn(backbone: Backbone, source: str) -> LoadReport:
    tensors = _named_cnn(backbone.name) if source == "imagenet" else _classifier_tensors(source)
    state = backbone.body.state_dict()
    fitting: dict[str, Tensor] = {}
    left = []
    for key, tensor in tensors.items():
        # timm flattens "stages.0" to "stages_0" when it returns features.
        name = next((k for k in (key, key.replace(".", "_", 1)) if k in state), None)
        if name is not None:
            fitting[name] = tensor
        elif not key.endswith("num_batches_tracked"):  # a frozen norm counts no batches
            left.append(key)
    strange = sorted(set(left) - _classifier_keys(backbone.name))
    # Older files hold no batch counts; they only matter where momentum is None.
    missing = [
        key for key in state if key not in fitting and not key.endswith("num_batches_tracked")
    ]
    _assign(backbone.body, source, state, fitting, strange=strange, missing=missing)
    return LoadReport(source, tuple(f"backbone.body.{key}" for key in fitting), (), tuple(left))


def _load_vit(vit: ViT, source: str) -> LoadReport:
    tensors = _vit_tensors(vit, source)
    state = vit.state_dict()
    dropped = [key for key in tensors if key.startswith(VIT_CLASSIFIER)]
    if "pos_embed" in tensors:
        tensors["pos_embed"] = _detector_positions(
            vit, tensors["pos_embed"], distilled="dist_token" in tensors, source=source
        )
    fitting = {key: tensor for key, tensor in tensors.items() if key in state}
    strange = sorted(set(tensors) - set(fitting) - set(dropped))
    initialised = tuple(key for key in DETECTION_ONLY if key in state and key not in fitting)
    missing = [key for key in state if key not in fitting and key not in initialised]
    _assign(vit, source, state, fitting, strange=strange, missing=missing)
    return LoadReport(
        source,
        tuple(f"backbone.{key}" for key in fitting),
        tuple(f"backbone.{key}" for key in initialised),
        tuple(dropped),
    )


def _vit_tensors(vit: ViT, source: str) -> dict[str, Tensor]:
    if source == "imagenet":
        return dict(_named_vit(vit))
    return read_vit_npz(source) if source.endswith(".npz") else _classifier_tensors(source)


def _detector_positions(vit: ViT, positions: Tensor, *, distilled: bool, source: str) -> Tensor:
    """Resample a classifier's (1, 1 + P, D) positions to the detector's grid.

    The detection tokens' positions stay as initialised. Of a distilled model's (1, 2 + P, D) the
    first is dropped: the distillation token's serves the class token, as in the official YOLOS.
    """
    if distilled:
        positions = positions[:, 1:]
    count = positions.shape[1] - 1
    side = math.isqrt(max(count, 0))
    if positions.ndim != 3 or side * side != count or positions.shape[2] != vit.cls_token.shape[2]:
        raise DetrKitError(
            f"{source}: pos_embed of shape {tuple(positions.shape)} is not that of a class token "
            f"and a square grid, {vit.cls_token.shape[2]} wide"
        )
    positions = positions.to(vit.pos_embed)
    grid = resample_grid(positions[:, 1:], (side, side), vit.grid_hw).flatten(1, 2)
    detection = vit.pos_embed.detach()[:, -vit.num_detection_tokens :]
    return torch.cat([positions[:, :1], grid, detection], dim=1)


def _assign(
    module: nn.Module,
    source: str,
    state: Mapping[str, Tensor],
    fitting: dict[str, Tensor],
    *,
    strange: list[str],
    missing: list[str],
) -> None:
    """Load what fits, unless anything does not: then nothing is touched."""
    shapes = [
        f"{key} {tuple(tensor.shape)} instead of {tuple(state[key].shape)}"
        for key, tensor in fitting.items()
        if tensor.shape != state[key].shape
    ]
    faults = [
        f"{what}: {listed(names, 5)}"
        for what, names in (
            ("of other shapes", shapes),
            ("not in the model", strange),
            ("missing in the file", missing),
        )
        if names
    ]
    if faults:
        raise DetrKitError(f"{source}: the weights do not fit the backbone; {'; '.join(faults)}")
    module.load_state_dict(fitting, strict=False)


def _classifier_keys(name: str) -> set[str]:
    """Return the keys that a whole classifier has, to tell a leftover from a stranger."""
    with torch.device("meta"):
        if name.startswith("timm/"):
            import timm

            return set(timm.create_model(timm_name(name)).state_dict())
        import torchvision

        return set(getattr(torchvision.models, name)(weights=None).state_dict())


def _named_cnn(name: str) -> Mapping[str, Tensor]:
    if name.startswith("timm/"):
        return _timm_weights(timm_name(name))
    import torchvision

    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    return _downloaded(
        f"torchvision's {name}", lambda: weights.get_state_dict(progress=False, check_hash=True)
    )


def _named_vit(vit: ViT) -> Mapping[str, Tensor]:
    width = vit.cls_token.shape[2]
    if width not in DEIT_BY_WIDTH:
        raise DetrKitError(
            f"backbone_weights imagenet: there are none for a ViT {width} wide; give a file"
        )
    return _timm_weights(DEIT_BY_WIDTH[width])


def _timm_weights(name: str) -> Mapping[str, Tensor]:
    try:
        import timm
    except ImportError as error:
        raise DetrKitError(
            "backbone_weights imagenet needs timm here: pip install 'detr_kit[timm]'"
        ) from error
    return _downloaded(
        f"timm's {name}", lambda: timm.create_model(name, pretrained=True).state_dict()
    )


def _downloaded(what: str, download: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    # Each library and each kind of network failure has its own exceptions.
    try:
        return download()
    except Exception as error:
        raise DetrKitError(
            f"backbone_weights imagenet: {what} could not be downloaded "
            f"({type(error).__name__}); give a local file, or 'none'"
        ) from error
