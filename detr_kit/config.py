"""The schema of a run, and its reading from YAML with `base:` files and dotted overrides.

Paths of data and outputs are relative to the working directory, `base:` to the file that names it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from yaml import YAMLError

from detr_kit.config_faults import explain
from detr_kit.errors import DetrKitError

AUGMENTATIONS = ("detr", "yolos", "small_data", "strong", "none")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Section(BaseModel):
    """A part of a configuration: unknown keys are refused, values are checked."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)


class ModelConfig(Section):
    """A variant of the zoo by name, and what to change in it; None keeps the variant's number."""

    name: str
    # a detector to start from, of any kind that Detector.from_checkpoint takes
    init_from: str | None = None
    # all families
    num_queries: int | None = Field(None, ge=1)
    hidden_dim: int | None = Field(None, ge=8)
    num_heads: int | None = Field(None, ge=1)
    feedforward_dim: int | None = Field(None, ge=1)
    dropout: float | None = Field(None, ge=0, lt=1)
    padding: Literal["independent", "official"] | None = None
    activation_checkpointing: bool | None = None
    # 2 freezes the stem and layer1 of a CNN; the embedding and the first block of a YOLOS
    frozen_stages: int | None = Field(None, ge=0)
    # a file, or "imagenet" for torchvision's or timm's own weights; the ViT of a YOLOS is its
    # backbone; "none" for random initialisation
    backbone_weights: str | None = None
    # DETR and Deformable DETR
    backbone: str | None = None  # "resnet50", "plain", "timm/NAME"
    backbone_norm: Literal["auto", "frozen", "batch", "group"] | None = None
    backbone_stages: int | None = Field(None, ge=1, le=5)
    dilation: bool | None = None
    encoder_layers: int | None = Field(None, ge=0)
    decoder_layers: int | None = Field(None, ge=1)
    # DETR
    pre_norm: bool | None = None
    position_encoding: Literal["sine", "learned"] | None = None
    positions_at_input: bool | None = None  # added to the features too, not in attention alone
    # Deformable DETR and its kind: DAB-DETR, DINO, RT-DETR
    levels: int | None = Field(None, ge=1, le=5)  # feature maps, each half the size of the last
    level_norm: Literal["group", "batch"] | None = None
    # attention to a few points, RT-DETR's (attention on the coarsest map, convolutions between
    # maps), attention to everything
    encoder: Literal["deformable", "hybrid", "dense"] | None = None
    encoder_dim: int | None = Field(None, ge=8)  # hybrid; as wide as the decoder if not given
    encoder_feedforward_dim: int | None = Field(None, ge=1)  # hybrid
    encoder_expansion: float | None = Field(None, gt=0)  # hybrid: width of its convolutions
    cross_attention: Literal["deformable", "dense"] | None = None
    points: int | None = Field(None, ge=1)  # looked at by a head on each level
    refinement: bool | None = None  # every layer moves the boxes of the layer before
    look_forward_twice: bool | None = None  # gradients reach the layer before through its box
    # none: queries are learned; full: they are the encoder's best tokens; mixed: their boxes are
    query_selection: Literal["none", "full", "mixed"] | None = None
    query_positions: Literal["learned", "proposal", "sine", "mlp"] | None = None
    decoder_norm: bool | None = None
    shared_heads: bool | None = None  # one pair of heads for all layers that refine boxes
    temperature: float | None = Field(None, gt=1)  # of the deformable encoder's positions
    centered_positions: bool | None = None  # of the deformable encoder, in the middle of cells
    # about how many queries repeat the objects with noise in training, half of them as negatives
    denoising_queries: int | None = Field(None, ge=0)
    label_noise: float | None = Field(None, ge=0, le=1)
    box_noise: float | None = Field(None, ge=0)
    groups: int | None = Field(None, ge=1)  # of queries in training: each finds every object
    scoring: Literal["sigmoid", "softmax"] | None = None
    # YOLOS
    depth: int | None = Field(None, ge=1)
    drop_path: float | None = Field(None, ge=0, lt=1)
    norm_eps: float | None = Field(None, gt=0)
    patch_size: int | None = Field(None, ge=1)
    patch_supervision: bool | None = None  # in training the heads learn from the patches too
    position_size_hw: tuple[int, int] | None = None
    mid_position_size_hw: tuple[int, int] | None = None


class SplitConfig(Section):
    """One split: a COCO-format json and the folder its file names are relative to."""

    annotations: Path
    images: Path


class DataConfig(Section):
    train: SplitConfig | None = None
    val: SplitConfig | None = None
    num_workers: int = Field(2, ge=0)
    on_bad_box: Literal["raise", "skip"] = "raise"
    on_bad_image: Literal["raise", "skip"] = "raise"
    # share of the pictures below which a category's pictures are repeated; 0: each comes once
    repeat_threshold: float = Field(0.0, ge=0, le=1)
    # a recipe by name, or a pipeline as albumentations.to_dict writes it: a mapping or a file
    augmentation: str | dict[str, Any] = "detr"

    @field_validator("augmentation", mode="before")
    @classmethod
    def _read_pipeline(cls, value: Any) -> Any:
        """Put the content in the place of a file's name, so that a run's config holds it."""
        if isinstance(value, str) and Path(value).suffix in (".yaml", ".yml", ".json"):
            value = OmegaConf.to_container(_read_yaml(Path(value), seen=()))
        if value == {} or (isinstance(value, str) and value not in AUGMENTATIONS):
            near = difflib.get_close_matches(str(value), AUGMENTATIONS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"must be one of {', '.join(AUGMENTATIONS)}, a mapping of transforms, or the name "
                f"of a .yaml or .json file with one{hint}"
            )
        return value


class ImageSizeConfig(Section):
    """How pictures are resized; see `detr_kit.sizes.SizeRule`."""

    rule: Literal["detr", "yolos_16", "huggingface", "huggingface_16", "fit", "square"] = "detr"
    short_side: int = Field(800, ge=16)
    long_side: int = Field(1333, ge=16)
    # training picks one of these for each picture; empty means `short_side` alone
    train_short_sides: tuple[int, ...] = ()
    train_long_side: int | None = None  # None: `long_side`
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class OptimizerConfig(Section):
    lr: float = Field(1e-4, gt=0)
    lr_backbone: float | None = Field(None, ge=0)  # None: `lr`; 0 freezes the backbone
    weight_decay: float = Field(1e-4, ge=0)
    # "detr": every parameter; "yolos": none on vectors, position embeddings and tokens
    decay: Literal["detr", "yolos"] = "detr"
    clip: float = Field(0.1, ge=0)  # 0: no clipping
    # each layer of the backbone learns at this share of the rate of the layer after it
    layer_decay: float = Field(1.0, gt=0, le=1)
    # images a step that the rates are stated for; None: for whatever the step holds
    recipe_batch: int | None = Field(None, ge=1)
    scale_lr: Literal["none", "linear", "sqrt"] = "none"  # from `recipe_batch` to the actual one


class ScheduleConfig(Section):
    kind: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[int, ...] = ()  # epochs at which the rate is multiplied by gamma
    gamma: float = Field(0.1, gt=0, le=1)
    min_lr: float = Field(1e-7, ge=0)  # where the cosine ends
    warmup_steps: int = Field(0, ge=0)
    per: Literal["epoch", "step"] = "epoch"  # how often the cosine moves


class LossConfig(Section):
    """Weights of matching cost and loss (DETR paper, appendix A.4), and the class loss."""

    # "auto": cross_entropy for a model with softmax scoring, focal for one with sigmoids, which
    # the other three are for
    classification: Literal["auto", "cross_entropy", "focal", "varifocal", "matchability"] = "auto"
    # None: as published with the loss: 0.25 (focal), 0.75 (varifocal), 1 (matchability) ...
    focal_alpha: float | None = Field(None, ge=0, le=1)
    focal_gamma: float | None = Field(None, ge=0)  # ... and 2, 2, 1.5
    class_cost: float | None = Field(None, ge=0)  # None: 1 with softmax, 2 with sigmoids
    l1_cost: float = Field(5.0, ge=0)
    giou_cost: float = Field(2.0, ge=0)
    class_weight: float = Field(1.0, ge=0)
    l1_weight: float = Field(5.0, ge=0)
    giou_weight: float = Field(2.0, ge=0)
    no_object_weight: float = Field(0.1, gt=0)
    normalizer: Literal["step", "official"] = "step"


class EvaluationConfig(Section):
    every: int = Field(1, ge=1)  # epochs; the last epoch is always evaluated
    batch_size: int | None = Field(None, ge=1)  # None: the training batch size
    metric: str = "ap"  # the key of `CocoMetrics.to_dict()` by which `best` is chosen
    patience: int | None = Field(None, ge=1)  # evaluations without a gain before training ends
    min_gain: float = Field(0.0, ge=0)  # what counts as a gain for `patience`


class AverageConfig(Section):
    """The exponential moving average of the weights, which is evaluated in their place."""

    decay: float = Field(0.0, ge=0, lt=1)  # 0: no average
    warmup_steps: int = Field(0, ge=0)  # the decay rises from 0 over about as many steps


class CheckpointConfig(Section):
    """When the state of a run is saved besides the end of each epoch, and what is kept."""

    minutes: float | None = Field(15.0, gt=0)  # None: not by time
    steps: int | None = Field(None, ge=1)
    keep: int = Field(0, ge=0)  # checkpoints of the newest epochs, kept in `epochs/`
    keep_every: int | None = Field(None, ge=1)  # every n-th epoch's is kept for good


class GuardConfig(Section):
    """What happens when a training goes wrong."""

    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is nan or infinite
    max_skipped: int = Field(10, ge=1)  # skipped steps in a row that end the run all the same
    hang_minutes: float | None = Field(10.0, gt=0)  # without a step, before it is reported


class RunConfig(Section):
    """Everything that a training run depends on."""

    output: Path = Path("runs/latest")
    epochs: int = Field(ge=1)
    # pictures a process and batch; "auto" tries out what fits into memory
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 2
    accumulate: int = Field(1, ge=1)  # batches a step
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    sharding: Literal["none", "fsdp"] = "none"  # of weights over processes
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()  # besides TensorBoard
    seed: int = Field(0, ge=0, lt=2**32)
    model: ModelConfig
    data: DataConfig = DataConfig()
    image_size: ImageSizeConfig = ImageSizeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    average: AverageConfig = AverageConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()

    @property
    def pictures_a_batch(self) -> int:
        """`batch_size`, known; raises DetrKitError while it is "auto"."""
        if self.batch_size == "auto":
            raise DetrKitError("batch_size: auto is found out by training only; give a number")
        return self.batch_size

    @field_validator("batch_size", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not isinstance(value, int):
            raise ValueError("must be a number, or auto")
        return value

    @field_validator("output")
    @classmethod
    def _expand(cls, path: Path) -> Path:
        return path.expanduser()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, the files it names as `base:`, then `key.subkey=value` overrides.

    Raises DetrKitError for a missing file, broken YAML, an unknown key or a value out of range.
    """
    merged = _read_yaml(Path(path), seen=())
    try:
        merged = OmegaConf.merge(merged, parse_overrides(overrides))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise DetrKitError(f"{path}: {_first_line(error)}") from error
    return parse_config(values, source=str(path), overrides=overrides)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `key.subkey=value` texts as nested dictionaries, values read as YAML.

    Raises DetrKitError for a text without "=" and for broken YAML.
    """
    for override in overrides:
        if "=" not in override:
            raise DetrKitError(f"override {override!r}: expected key=value")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise DetrKitError(f"{' '.join(overrides)}: {_first_line(error)}") from error
    return cast(dict[str, Any], values)


def parse_config(values: Any, source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Validate a plain dictionary; errors name `source`, or the override that set what is wrong."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        override = _override_of(fault["loc"], overrides)
        where = source if override is None else f"override {override!r}"
        raise DetrKitError(f"{where}: {explain(fault, RunConfig)}") from error


def _override_of(place: Sequence[int | str], overrides: Sequence[str]) -> str | None:
    """Return the last override that sets the value at a place in a config, or something in it."""
    for override in reversed(overrides):
        value: Any = parse_overrides([override])
        for part in place:
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            return override
        if not isinstance(value, dict):
            return override
    return None


def dump_config(config: RunConfig) -> str:
    """Return the YAML text that reads back as `config`."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> Any:
    if path.resolve() in seen:
        raise DetrKitError(f"{path}: `base:` leads back to itself")
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise DetrKitError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise DetrKitError(f"{path}: not a readable YAML file: {_first_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise DetrKitError(f"{path}: expected a mapping of keys at the top")
    base = loaded.pop("base", None)
    if base is None:
        return loaded
    return OmegaConf.merge(_read_yaml(path.parent / base, (*seen, path.resolve())), loaded)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
