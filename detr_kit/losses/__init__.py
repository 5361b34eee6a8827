"""What training minimises: the set criterion, its terms and what they are divided by."""

from detr_kit.losses.classification import ClassLossName, class_loss_for
from detr_kit.losses.criterion import DENOISING_NAMES, LossValues, SetCriterion
from detr_kit.losses.normalizers import Normalizer, StepCounts
from detr_kit.losses.terms import cardinality_error, class_error, giou_loss, l1_loss

__all__ = [
    "DENOISING_NAMES",
    "ClassLossName",
    "LossValues",
    "Normalizer",
    "SetCriterion",
    "StepCounts",
    "cardinality_error",
    "class_error",
    "class_loss_for",
    "giou_loss",
    "l1_loss",
]
