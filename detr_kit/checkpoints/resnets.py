"""The ResNets that published DETRs have, by their depths (He et al. 2016, table 1)."""

from __future__ import annotations

# Blocks of the four stages, and whether they are bottlenecks.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}


def stage_widths(bottleneck: bool) -> tuple[int, ...]:
    """Return the channels of the four stages."""
    return (256, 512, 1024, 2048) if bottleneck else (64, 128, 256, 512)
