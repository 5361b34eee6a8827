"""Writing a detector in another form: as ours, as official weights, as a transformers folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from detr_kit.checkpoints.detector import DetectorSpec, save_detector
from detr_kit.checkpoints.huggingface import CONFIG_FILE, PROCESSOR_FILE, huggingface_files
from detr_kit.checkpoints.official import official_content
from detr_kit.checkpoints.opened import OpenedCheckpoint
from detr_kit.checkpoints.sources import open_checkpoint
from detr_kit.errors import DetrKitError
from detr_kit.files import atomic_folder, atomic_write

Tensors = dict[str, torch.Tensor]
Form = Literal["detr_kit", "official", "huggingface"]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    form: Form = "detr_kit",
    architecture: Mapping[str, Any] | None = None,
    categories: Mapping[int, str] | None = None,
) -> OpenedCheckpoint:
    """Read a detector of any kind and write it to `out`; return what was read, with notes on both.

    `form` is what to write: "detr_kit", a folder; "official", a `.pth` with the keys of the
    official repositories under "model"; "huggingface", a folder that transformers loads. The
    other arguments are those of `open_checkpoint`.

    Raises DetrKitError where `out` exists, where the source is not a whole detector, and where
    the form has no such model; nothing is written then.
    """
    out = Path(out)
    if out.exists():
        raise DetrKitError(f"{out}: it exists; give a new name")
    if form == "official" and out.suffix != ".pth":
        raise DetrKitError(f"{out}: official weights are one file; give a name in .pth")
    if form != "official" and out.suffix == ".pth":
        raise DetrKitError(f"{out}: the form {form} is a folder; only official weights are a .pth")
    opened = open_checkpoint(source, architecture, categories)
    model = opened.build()  # also the proof that nothing is missing
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    try:
        if form == "official":
            notes = _write_official(out, tensors, opened.spec)
        elif form == "huggingface":
            notes = _write_huggingface(out, tensors, opened.spec)
        else:
            notes = ()
            with atomic_folder(out) as folder:
                save_detector(folder, model, opened.spec)
    except DetrKitError as error:
        raise DetrKitError(f"{source}: {error}") from error
    return replace(opened, notes=opened.notes + notes)


def _write_official(out: Path, tensors: Tensors, spec: DetectorSpec) -> tuple[str, ...]:
    content, notes = official_content(tensors, spec)
    with atomic_write(out) as path:
        torch.save(content, path)
    return notes


def _write_huggingface(out: Path, tensors: Tensors, spec: DetectorSpec) -> tuple[str, ...]:
    config, processor, weights, notes = huggingface_files(tensors, spec)
    with atomic_folder(out) as folder:
        for name, values in ((CONFIG_FILE, config), (PROCESSOR_FILE, processor)):
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        # Parts of a stacked tensor share its memory, which safetensors refuses.
        parts = {key: tensor.clone() for key, tensor in weights.items()}
        save_file(parts, folder / "model.safetensors", metadata={"format": "pt"})
    return notes
