"""Fixtures that every test can use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def _beside(name: str, variable: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"needs the folder ../shared/{name} (or {variable})")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures with COCO labels."""
    return _beside("data", "DETR_KIT_DATA")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """One CNN pretrained on ImageNet."""
    return _beside("weights", "DETR_KIT_WEIGHTS")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Outputs, losses and gradients of the official code."""
    return _beside("fixtures", "DETR_KIT_FIXTURES")
