"""Opening a detector, whatever it is kept as.

What is accepted: a folder that detr_kit wrote, or a run's folder; a `.pth` of the official DETR or
YOLOS; a folder of Hugging Face transformers with a DETR, Deformable DETR, RT-DETR, RT-DETRv2 or
YOLOS; the name of such a model on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from detr_kit.checkpoints.detector import MODEL_FILE, SPEC_FILE, DetectorSpec, read_spec
from detr_kit.checkpoints.hub import fetch_model, is_hub_name, looks_like_hub_name
from detr_kit.checkpoints.huggingface import CONFIG_FILE, WEIGHT_FILES, open_huggingface
from detr_kit.checkpoints.official import open_official
from detr_kit.checkpoints.opened import OpenedCheckpoint, changed_architecture
from detr_kit.checkpoints.reading import read_checkpoint, read_tensors
from detr_kit.errors import DetrKitError
from detr_kit.files import is_onnx_file

_ACCEPTED = (
    f"expected a folder with {SPEC_FILE} and {MODEL_FILE}, a run's folder with such a best/ in "
    f"it, a Hugging Face folder with {CONFIG_FILE} or a name on its hub, or an official .pth file"
)

# Each of the models of transformers that can be read has one of these tensors.
_OF_HUGGINGFACE = {
    "model.query_position_embeddings.weight",
    "model.level_embed",
    "model.encoder_input_proj.0.0.weight",
    "vit.embeddings.detection_tokens",
}


def open_checkpoint(
    source: str | Path,
    architecture: Mapping[str, Any] | None = None,
    categories: Mapping[int, str] | None = None,
) -> OpenedCheckpoint:
    """Return the weights under detr_kit's names, and what the detector is, without building it.

    `source` is one of the kinds that this module lists; only a string can be a hub's name.
    `architecture` replaces settings, those that the file leaves open for example
    (`{"dilation": True}`), or `{"padding": "official"}`. `categories` gives ids and names to
    the class columns of an official file; elsewhere they are known.

    Nothing is unpickled but tensors and plain values, and nothing but `source` is read. Raises
    DetrKitError where it is not a detector, or not a whole one.
    """
    opened = _open_named(source, architecture)
    if opened is None:
        return _open_weights(Path(source).expanduser(), architecture, categories)
    if categories is not None:
        raise DetrKitError(f"{source}: it names its categories itself")
    return opened


def load_detector(
    source: str | Path,
    architecture: Mapping[str, Any] | None = None,
    categories: Mapping[int, str] | None = None,
) -> tuple[nn.Module, DetectorSpec]:
    """Return the model, on the CPU and in evaluation mode, and its spec.

    Arguments and errors are those of `open_checkpoint`; the random state stays as it was.
    """
    opened = open_checkpoint(source, architecture, categories)
    return opened.build(), opened.spec


def _own_folder(path: Path) -> Path | None:
    """Return the folder that detr_kit wrote: the path itself, or its `best/`."""
    return next(
        (folder for folder in (path, path / "best") if (folder / SPEC_FILE).is_file()), None
    )


def _open_own(folder: Path, architecture: Mapping[str, Any] | None) -> OpenedCheckpoint:
    spec = read_spec(folder)
    if not (folder / MODEL_FILE).is_file():
        raise DetrKitError(f"{folder}: not a whole detector's folder: {MODEL_FILE} is missing")
    numbers = changed_architecture(spec.architecture, architecture, str(folder))
    spec = replace(spec, architecture=numbers)
    return OpenedCheckpoint(str(folder), "detr_kit", spec, read_tensors(folder / MODEL_FILE))


def _open_named(
    source: str | Path, architecture: Mapping[str, Any] | None
) -> OpenedCheckpoint | None:
    """Open what names its categories itself; None for a file of weights alone."""
    path = Path(source).expanduser()
    try:
        folder = _own_folder(path)
    except OSError as error:  # a name that is too long, for example
        raise DetrKitError(f"{source}: {error.strerror}") from error
    if folder is not None:
        return _open_own(folder, architecture)
    if (path / CONFIG_FILE).is_file():
        return open_huggingface(path, source=str(source), architecture=architecture)
    if path.is_file():
        beside = path.parent
        if path.name == MODEL_FILE and (beside / SPEC_FILE).is_file():
            return _open_own(beside, architecture)
        if path.name in WEIGHT_FILES and (beside / CONFIG_FILE).is_file():
            return open_huggingface(beside, source=str(beside), architecture=architecture)
        return None
    _refuse_unevaluated(source, path)
    if isinstance(source, str) and not path.exists() and is_hub_name(source):
        cached = fetch_model(source)
        # The folder's name is the commit: it tells which state of the model this was.
        named = f"{source.partition('@')[0]}@{cached.name}"
        return open_huggingface(cached, source=named, architecture=architecture)
    found = "is none" if path.exists() else "does not exist"
    if isinstance(source, str) and not path.exists() and looks_like_hub_name(source):
        found += f", and the hub is not asked, as there is a folder {path.parts[0]} here"
    raise DetrKitError(f"{source}: {found}; {_ACCEPTED}")


def _refuse_unevaluated(source: str | Path, path: Path) -> None:
    """Raise DetrKitError for a run, or the `best/` of one, that was not evaluated yet."""
    for run in (path, path.parent) if path.name == "best" else (path,):
        last = run / "last"
        if not (run / "best").exists() and all(
            (last / name).is_file() for name in (SPEC_FILE, MODEL_FILE)
        ):
            raise DetrKitError(
                f"{source}: the run has made no evaluation yet, and so has no best/; use {last}"
            )


def _open_weights(
    path: Path, architecture: Mapping[str, Any] | None, categories: Mapping[int, str] | None
) -> OpenedCheckpoint:
    if is_onnx_file(path) or path.suffix.lower() == ".pt2":
        raise DetrKitError(f"{path}: an exported file; give the checkpoint that it was made of")
    content = read_checkpoint(path)
    if _OF_HUGGINGFACE & content.tensors.keys():
        raise DetrKitError(
            f"{path}: a Hugging Face model's weights; give the folder that also holds its "
            f"{CONFIG_FILE}"
        )
    return open_official(
        content.tensors,
        source=str(path),
        args=content.args,
        architecture=architecture,
        categories=categories,
    )
