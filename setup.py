"""Metadata and dependencies of detr_kit; the settings of the tools are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "detr_kit/__init__.py").read_text(encoding="utf-8"), re.M
).group(1)

# The minimum versions were installed together on Python 3.10 and passed the tests there, save for
# the tools that check style, types and imports and the extras onnx, demo, wandb and mlflow; the
# last two's recorded a run on Python 3.11. tools/test.sh takes the newest ones.
REQUIRED = [
    "torch>=2.11",
    "torchvision>=0.26",  # each release asks for the torch that it was built for
    "accelerate>=1.8",
    "albumentations>=2.0.8,<3",
    "filelock>=3.16",
    "huggingface_hub>=1.3",
    "jinja2>=3.1",
    "matplotlib>=3.10.9",
    "msgspec>=0.19",
    "numpy>=2.0",
    "omegaconf>=2.3",
    "opencv-python-headless>=4.10.0.84",
    "pillow>=11.0",
    "psutil>=5.9",
    "pycocotools>=2.0.8",
    "pydantic>=2.10",
    "PyYAML>=6.0.1",
    "rich>=13.8",
    "safetensors>=0.5",
    "scipy>=1.13",
    "tensorboard>=2.20",
    "typer>=0.26",
]
OF_INFERENCE = {
    "onnx": ["onnx>=1.19", "onnxscript>=0.6", "onnxruntime>=1.20"],
    "demo": ["gradio>=6.0"],
    "track": ["norfair-enough>=2.4"],
}
EXTRAS = {
    **OF_INFERENCE,
    "timm": ["timm>=1.0.26"],
    "wandb": ["wandb>=0.20.1"],
    "mlflow": ["mlflow>=3.1"],
    "test": [
        *OF_INFERENCE["onnx"],
        *OF_INFERENCE["demo"],
        *OF_INFERENCE["track"],
        "hypothesis>=6.100",
        "import-linter>=2.15",
        "mypy>=1.15",
        "pandas>=2.2",
        "pytest>=8.3",
        "pytest-cov>=6.0",
        "pytest-xdist>=3.6.1",
        "ruff>=0.12",
        "supervision>=0.31",
        "timm>=1.0.26",
        "transformers>=5.10.4",
    ],
}

setup(
    name="detr_kit",
    version=VERSION,
    description="Object detection with transformers: DETR and YOLOS on COCO-format data",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    keywords="object-detection detr yolos transformer coco",
    packages=find_packages(include=["detr_kit", "detr_kit.*"]),
    package_data={"detr_kit": ["py.typed", "visualization/templates/*.html"]},
    python_requires=">=3.10",
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["detr-kit = detr_kit.cli:main"]},
)
