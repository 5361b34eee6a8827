"""transformers' side of small_data.py: RT-DETRv2 with a timm backbone and its ImageNet weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from small_data_trial import EvaluationSplit, Trial
from torch import Tensor, nn

from detr_kit.checkpoints.reading import read_tensors
from detr_kit.config import AverageConfig, parse_config
from detr_kit.data.annotations import load_annotations
from detr_kit.data.loading import train_loader
from detr_kit.evaluation.found import ResultColumns
from detr_kit.evaluation.results import result_columns
from detr_kit.structures import CollatedImages, TargetBatch
from detr_kit.training.average import WeightAverage

BACKBONE = "tf_efficientnet_lite0"
LEVELS = (2, 3, 4)  # strides 8, 16 and 32
PEER_STRIDE = 32  # sides that are no multiples fail: maps that are doubled no longer fit
_SAME = 1e-5  # share of the largest feature by which frozen and timm's own features may differ
# Parts that transformers begins as RT-DETR's own code does.
_KEPT = ("backbone.", "attn.", "class_embed", "enc_score_head", "denoising_class_embed")


@dataclass(frozen=True)
class PeerSettings:
    """The numbers of the peer; `initial` tells how layers begin, see `begin_as_pytorch`."""

    hidden_dim: int
    feedforward_dim: int
    decoder_layers: int
    queries: int
    denoising: int
    frozen_stages: int
    lr: float
    lr_backbone: float
    weight_decay: float
    clip: float
    average: float
    average_warm_up: int
    initial: Literal["transformers", "pytorch"]


class FrozenTimm(nn.Module):
    """A timm CNN for transformers' detectors; norms keep statistics, scales, eps and activation.

    transformers would replace timm's norms by its own frozen one, which has neither the activation
    nor another eps than 1e-5.
    """

    def __init__(self, name: str, weights: dict[str, Tensor], frozen_stages: int) -> None:
        super().__init__()
        self.body = timm_features(name, weights)
        self.channels = self.body.feature_info.channels()
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        _freeze(self.body, frozen_stages)
        self.train()

    def train(self, mode: bool = True) -> FrozenTimm:
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> Any:
        from transformers.modeling_outputs import BackboneOutput

        return BackboneOutput(feature_maps=tuple(self.body(pixels)))


class PeerLearner:
    """RT-DETRv2 of transformers, with its loss and its post-processing."""

    def __init__(self, trial: Trial, settings: PeerSettings, device: torch.device) -> None:
        self.device = device
        self.mean, self.std = trial.preprocessing.mean, trial.preprocessing.std
        self.loader, categories = _training_pictures(trial)
        self.category_ids = np.array(categories.ids)
        torch.manual_seed(trial.seed)
        weights = read_tensors(trial.weights)
        self.model = build_peer(settings, len(categories), weights)
        self._require_same_features(weights)
        self.model.to(device).train()
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        backbone = [p for name, p in trained if name.startswith("model.backbone.")]
        rest = [p for name, p in trained if not name.startswith("model.backbone.")]
        self.optimizer = torch.optim.AdamW(
            [{"params": backbone, "lr": settings.lr_backbone}, {"params": rest}],
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.clip = settings.clip
        average = AverageConfig(decay=settings.average, warmup_steps=settings.average_warm_up)
        self.average = WeightAverage(self.model, average) if settings.average else None
        self.loss = float("nan")
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.settings = {"peer": asdict(settings), "parameters": self.parameters}

    def step(self, images: CollatedImages, targets: TargetBatch, number: int) -> None:
        self.model.train()
        on_device = targets.to(self.device)
        counts = list(targets.counts)
        labels = [
            {"class_labels": labels, "boxes": boxes}
            for labels, boxes in zip(
                on_device.labels.split(counts), on_device.boxes_cxcywh.split(counts), strict=True
            )
        ]
        loss = self.model(pixel_values=self._pixels(images), labels=labels).loss
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(number)
        self.loss = loss.item()
        if not np.isfinite(self.loss):
            raise SystemExit(f"step {number}: the loss is {self.loss}")

    def find(self, split: EvaluationSplit) -> ResultColumns:
        if self.average is None:
            return self._find(split)
        with self.average.applied():
            return self._find(split)

    @torch.no_grad()
    def _find(self, split: EvaluationSplit) -> ResultColumns:
        """Return the results as transformers' post-processing gives them, none left out."""
        from transformers import RTDetrImageProcessor

        processor = RTDetrImageProcessor()
        self.model.eval()
        rows = []
        for images, _ in split.loader:
            sizes = torch.tensor(images.original_sizes_hw, device=self.device)
            found = processor.post_process_object_detection(
                self.model(pixel_values=self._pixels(images)), threshold=-1.0, target_sizes=sizes
            )
            for image_id, one in zip(images.image_ids, found, strict=True):
                boxes = one["boxes"].double().cpu().numpy()
                boxes[:, 2:] -= boxes[:, :2]
                rows.append(
                    np.column_stack(
                        [
                            np.full(len(boxes), float(image_id)),
                            boxes,
                            one["scores"].double().cpu().numpy(),
                            self.category_ids[one["labels"].cpu().numpy()],
                        ]
                    )
                )
        return result_columns(np.concatenate(rows))

    def _pixels(self, images: CollatedImages) -> Tensor:
        return images.to(self.device).normalized(self.mean, self.std).pixels

    @torch.no_grad()
    def _require_same_features(self, weights: dict[str, Tensor]) -> None:
        """Compare the backbone, as it trains, with timm's own in evaluation, on a real picture."""
        image = torch.as_tensor(self.loader.dataset[0].image).unsqueeze(0)
        size_hw = (image.shape[1], image.shape[2])
        pixels = CollatedImages(image, (size_hw,), (size_hw,), (0,)).normalized(self.mean, self.std)
        own = self.model.model.backbone.train()(
            pixels.pixels, torch.ones(1, *size_hw, dtype=torch.long)
        )
        theirs = timm_features(BACKBONE, weights).eval()(pixels.pixels)
        for (mine, _), reference in zip(own, theirs, strict=True):
            off = float((mine - reference).abs().max() / reference.abs().max())
            if not off < _SAME:
                raise SystemExit(f"the peer's features differ from timm's by a share of {off:.1e}")


def _training_pictures(trial: Trial) -> tuple[Any, Any]:
    """Return detr_kit's loader of the training split, and the categories."""
    values = {
        "epochs": 1,
        "batch_size": trial.batch_size,
        "seed": trial.seed,
        "model": {"name": "detr_small"},  # of no use to a loader, but a config has one
        "data": {"train": trial.split("train"), "num_workers": 0},
    }
    config = parse_config(values, source="the trial")
    annotations = load_annotations(trial.split("train")["annotations"])
    loader = train_loader(config, annotations)
    trial.use_pipelines(loader)
    return loader, annotations.categories


def timm_features(name: str, weights: dict[str, Tensor]) -> Any:
    """Return timm's CNN that gives its feature maps, with a classifier's weights."""
    import timm

    body = timm.create_model(name, pretrained=False, features_only=True, out_indices=LEVELS)
    missing, _ = body.load_state_dict(weights, strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise SystemExit(f"{missing[0]} and others of {name} are not in the file of weights")
    return body


def _freeze(body: Any, stages: int) -> None:
    """Freeze everything up to the end of so many stages, as detr_kit's `frozen_stages`."""
    names = list(dict(body.named_parameters()))
    ends = [info["module"] + "." for info in body.feature_info.info[:stages]]
    last = max((i for i, n in enumerate(names) if n.startswith(tuple(ends))), default=-1)
    for name in names[: last + 1]:
        body.get_parameter(name).requires_grad_(False)


def build_peer(settings: PeerSettings, num_classes: int, weights: dict[str, Tensor]) -> Any:
    from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection, TimmBackboneConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    backbone = FrozenTimm(BACKBONE, weights, settings.frozen_stages)
    dim = settings.hidden_dim
    config = RTDetrV2Config(
        # Built for its channels alone, then replaced.
        backbone_config=TimmBackboneConfig(
            backbone=BACKBONE, out_indices=LEVELS, features_only=True
        ),
        encoder_in_channels=backbone.channels,
        encoder_hidden_dim=dim,
        d_model=dim,
        decoder_in_channels=[dim] * len(LEVELS),
        encoder_ffn_dim=settings.feedforward_dim,
        decoder_ffn_dim=settings.feedforward_dim,
        decoder_layers=settings.decoder_layers,
        num_queries=settings.queries,
        num_denoising=settings.denoising,
        num_labels=num_classes,
    )
    model = RTDetrV2ForObjectDetection(config)
    model.model.backbone.model = backbone
    if settings.initial == "pytorch":
        begin_as_pytorch(model)
    return model


@torch.no_grad()
def begin_as_pytorch(model: Any) -> None:
    """Draw layers anew as PyTorch does by default, which RT-DETR's own code leaves them to.

    transformers draws every matrix, convolution and scale of a batch norm with a deviation of
    0.01: a detector that was not trained yet passes next to nothing on.
    """
    for name, module in model.named_modules():
        if any(part in name for part in _KEPT) and "self_attn." not in name:
            continue
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    for head in (model.model.enc_bbox_head, *model.bbox_embed, *model.model.decoder.bbox_embed):
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)
