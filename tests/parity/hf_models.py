"""DETR and YOLOS of Hugging Face transformers with random weights, and how ours differ from them.

Nothing is downloaded: models are built from configs, filled with drawn weights and written as
transformers writes them; ours are what our loader makes of the folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.utils import logging

from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.models.attention import Attention
from detr_kit.models.zoo import build_model
from detr_kit.sizes import SizeHW
from detr_kit.structures import ImageBatch, ModelOutput

logging.disable_progress_bar()
logging.set_verbosity_error()  # it tells at every config that timm keeps its own attention

BOUND = 1e-9  # of absolute differences in float64
NUM_CATEGORIES = 7
# Their attention as plain products and a softmax: the only one of theirs that returns its weights.
COMMON = {
    "id2label": {column: f"kind {column}" for column in range(NUM_CATEGORIES)},
    "label2id": {f"kind {column}": column for column in range(NUM_CATEGORIES)},
    "attn_implementation": "eager",
}
_SMALL_DETR = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "num_queries": 20,
}
_SMALL_YOLOS = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "num_detection_tokens": 20,
    "image_size": [96, 160],
}


def _timm(backbone: str, **changes: Any) -> DetrConfig:
    return DetrConfig(
        use_timm_backbone=True,
        backbone=backbone,
        use_pretrained_backbone=False,
        **{**COMMON, **changes},
    )


def _transformers(layer_type: str, depths: list[int], widths: list[int], **changes: Any) -> Any:
    cnn = ResNetConfig(
        layer_type=layer_type, depths=depths, hidden_sizes=widths, out_features=["stage4"]
    )
    return DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=cnn,
        **{**COMMON, **changes},
    )


def _yolos(**changes: Any) -> YolosConfig:
    return YolosConfig(**{**COMMON, **_SMALL_YOLOS, **changes})


CONFIGS: dict[str, Callable[[], DetrConfig | YolosConfig]] = {
    "detr_timm_r18": lambda: _timm("resnet18", **_SMALL_DETR),
    "detr_timm_r50_dc5": lambda: _timm("resnet50", dilation=True, **_SMALL_DETR),
    "detr_transformers_r18": lambda: _transformers(
        "basic", [2, 2, 2, 2], [64, 128, 256, 512], **_SMALL_DETR
    ),
    "detr_transformers_r50_learned": lambda: _transformers(
        "bottleneck",
        [3, 4, 6, 3],
        [256, 512, 1024, 2048],
        position_embedding_type="learned",
        **_SMALL_DETR,
    ),
    "detr_full_width": lambda: _timm("resnet50"),  # the config's defaults are DETR's numbers
    # 1e-12 is what the hub's YOLOS files say.
    "yolos_mid": lambda: _yolos(layer_norm_eps=1e-12),
    # Sides that are no multiples of a patch, as those of the published YOLOS-Ti.
    "yolos_no_mid": lambda: _yolos(
        layer_norm_eps=1e-5, use_mid_position_embeddings=False, image_size=[100, 171]
    ),
    "yolos_full_width": lambda: YolosConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, **COMMON
    ),
}


# Gains of weight matrices, by the first pattern that a key matches; 1 where none does.
_GAINS = (
    (r"encoder_attn\.", 2.0),
    (r"\.self_attn\.o", 0.3),
    (r"\.fc2\.", 0.5),
    (r"bbox_predictor", 1.1),
    (r"[qk]_proj|\.query\.|\.key\.|class_labels", 1.5),
)
_TABLES = r"token|(position|row|column)_embeddings"


def random_reference(name: str) -> nn.Module:
    """Return a reference in evaluation mode whose float32 weights are drawn, not initialised.

    An initialised model hides faults: norms that do nothing, biases of zero, attention that is
    nearly uniform, queries whose outputs agree in five digits. What keeps queries apart here are
    features without a common part, sharp attention, and more weight on the cross attention than
    on what makes tokens alike.
    """
    config = CONFIGS[name]()
    kind = YolosForObjectDetection if isinstance(config, YolosConfig) else DetrForObjectDetection
    reference = kind(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in reference.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(drawn(key, tensor, generator))
        if kind is DetrForObjectDetection:
            _center_features(reference)
    return reference


def drawn(key: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(tensor.shape, generator=generator)
    if key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
        return torch.rand(tensor.shape, generator=generator) + 0.5
    if tensor.ndim == 1:
        return 0.3 * normal
    if re.search(_TABLES, key):
        return normal * (2.0 if "query" in key else 1.0)
    gain = next((gain for pattern, gain in _GAINS if re.search(pattern, key)), 1.0)
    return gain * normal * (tensor.numel() / len(tensor)) ** -0.5


def _center_features(reference: nn.Module) -> None:
    """Take the mean of a picture's projected features out of the projection's bias.

    Features that follow a ReLU are mostly a mean that all places share.
    """
    projection = reference.model.input_projection
    seen: list[Tensor] = []
    handle = projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    reference(random_batch((128, 160), seed=0).pixels)
    handle.remove()
    projection.bias -= seen[0].mean((0, 2, 3))


def save_reference(reference: nn.Module, folder: Path, *, as_bin: bool = False) -> None:
    """Write a folder as transformers does; `as_bin`: its weights as older releases wrote them."""
    reference.save_pretrained(folder)
    if as_bin:
        weights = folder / "model.safetensors"
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()


def load_ours(
    folder: Path,
    *,
    change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
    build_as: Mapping[str, Any] | None = None,
    **architecture: Any,
) -> nn.Module:
    """Return our model of a folder; `change` and `build_as` plant faults behind the loader."""
    opened = open_checkpoint(folder, architecture=architecture)
    numbers = opened.spec.architecture | dict(build_as or {})
    tensors = opened.tensors if change is None else change(dict(opened.tensors))
    with torch.device("meta"):  # an initialisation would take longer than all the rest
        model = build_model(numbers, len(opened.spec.categories))
    model.load_state_dict(tensors, assign=True)
    return model.eval()


@dataclass(frozen=True)
class Pair:
    """The same detector twice: `ours` and the `reference`."""

    ours: nn.Module
    reference: nn.Module

    def to(self, dtype: torch.dtype) -> Pair:
        """Change both in place; float32 weights come back from float64 unchanged."""
        self.ours.to(dtype)
        self.reference.to(dtype)
        return self


def random_batch(*sizes_hw: SizeHW, seed: int = 1) -> ImageBatch:
    """Return float32 pictures of smooth and of fine noise, padded to one batch."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for size in sizes_hw:
        coarse = torch.randn(1, 3, size[0] // 32 + 1, size[1] // 32 + 1, generator=generator)
        smooth = F.interpolate(coarse, size=size, mode="bilinear")[0]
        images.append(2 * smooth + 0.5 * torch.randn(3, *size, generator=generator))
    return ImageBatch.from_images(images)


def in_dtype(batch: ImageBatch, dtype: torch.dtype) -> ImageBatch:
    return replace(batch, pixels=batch.pixels.to(dtype))


def reference_inputs(reference: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
    """Return the arguments of a batch; the DETRs take a mask, and need none unpadded."""
    inputs = {"pixel_values": batch.pixels}
    masked = (DetrForObjectDetection, DeformableDetrForObjectDetection)
    if batch.has_padding and isinstance(reference, masked):
        inputs["pixel_mask"] = (~batch.padding_mask).long()
    return inputs


class _Float64ForFloat32(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if func is torch.Tensor.to:
            args = [torch.float64 if value is torch.float32 else value for value in args]
        return args[0].double() if func is torch.Tensor.float else func(*args, **kwargs)


@contextmanager
def wide_constants(dtype: torch.dtype) -> Iterator[None]:
    """Let the reference make its constants in float64 where the model is in float64.

    Its loss makes class weights in the default precision, which float64 logits are refused with;
    releases before 5 compute sine positions in float32, whatever the model's precision, and all
    those of Deformable DETR's proposals.
    """
    if dtype != torch.float64:
        yield
        return
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _Float64ForFloat32():
            yield
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def both_outputs(pair: Pair, batch: ImageBatch) -> tuple[ModelOutput, Any]:
    """Run both sides on a batch of their precision."""
    with wide_constants(batch.pixels.dtype):
        theirs = pair.reference(**reference_inputs(pair.reference, batch))
    return pair.ours(batch), theirs


def output_difference(
    pair: Pair, batches: Sequence[ImageBatch], dtype: torch.dtype = torch.float64
) -> float:
    """Return the largest absolute difference of logits and of boxes in [0, 1].

    NaN where one side is not finite. Raises RuntimeError where the shapes differ.
    """
    pair.to(dtype)
    worst = []
    for batch in batches:
        ours, theirs = both_outputs(pair, in_dtype(batch, dtype))
        worst += [ours.logits - theirs.logits, ours.boxes_cxcywh - theirs.pred_boxes]
    return largest(worst)


def largest(differences: Sequence[Tensor]) -> float:
    """Return the largest absolute value of all tensors; NaN where there is one."""
    return float(torch.stack([difference.abs().max() for difference in differences]).max())


@torch.no_grad()
def both_attention_maps(
    pair: Pair, batch: ImageBatch
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Return each side's (B, h, N, M) weights of every layer, by kind of attention."""
    ours: dict[str, list[Tensor]] = {}
    modules = [
        (name, module)
        for name, module in pair.ours.named_modules()
        if isinstance(module, Attention)
    ]
    for name, module in modules:
        module.observer = ours.setdefault(_kind_of_attention(name), []).append
    try:
        pair.ours(batch)
    finally:
        for _, module in modules:
            module.observer = None
    with wide_constants(batch.pixels.dtype):
        output = pair.reference(
            **reference_inputs(pair.reference, batch), output_attentions=True, return_dict=True
        )
    fields = {
        "ViT blocks": "attentions",
        "encoder": "encoder_attentions",
        "decoder, self": "decoder_attentions",
        "decoder, cross": "cross_attentions",
    }
    theirs = {kind: list(output[name]) for kind, name in fields.items() if name in output}
    return ours, theirs


def _kind_of_attention(name: str) -> str:
    if name.startswith("backbone.blocks."):
        return "ViT blocks"
    if name.startswith("encoder."):
        return "encoder"
    return "decoder, self" if name.endswith("self_attn") else "decoder, cross"
