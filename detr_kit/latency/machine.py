"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = {"detr_kit": "detr_kit", "torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine(device: Any, *, threads: int) -> dict[str, Any]:
    """Return names and numbers that say what times mean; `device` is torch's, or a name."""
    found = {
        "processor": _processor(),
        "cores": num_cores(),
        "threads": threads,
        "device": _device_name(device),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    versions = {name: _version_of(package) for package, name in _PACKAGES.items()}
    return found | {name: number for name, number in versions.items() if number is not None}


def machine_text(machine: dict[str, Any]) -> str:
    """Write in a line what `describe_machine` returned."""
    cores, threads = (
        f"{machine[name]} {name if machine[name] != 1 else name.removesuffix('s')}"
        for name in ("cores", "threads")
    )
    first = [machine["processor"], cores, threads, f"device {machine['device']}"]
    rest = [f"{name} {value}" for name, value in list(machine.items())[len(first) :]]
    return ", ".join(first + rest)


def _device_name(device: Any) -> str:
    if getattr(device, "type", None) == "cuda":
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def num_cores() -> int:
    """Return how many cores this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name as Linux tells it, or what else Python knows."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
