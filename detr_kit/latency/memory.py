"""The most memory that calls take."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_MAPPED = ("RssFile", "RssShmem")


class PeakMemory:
    """The most memory in use since it was made.

    On an accelerator it is what PyTorch has allocated there, weights included. On a CPU it is the
    resident memory of this process beyond `resident_before`, without files that are mapped, such
    as libraries: what was run before loaded them too. Linux alone tells that peak.
    """

    def __init__(self, device: Any, resident_before: int | None) -> None:
        self._device = device
        self._resident_before = resident_before
        self._is_cpu = device is None or device.type == "cpu"
        if self._is_cpu:
            _restart_resident_peak()
        else:
            import torch

            with suppress(RuntimeError):  # a kind of device that keeps no statistics
                torch.accelerator.reset_peak_memory_stats(device)

    def bytes(self) -> int | None:
        """Return the peak; None where it cannot be told."""
        if self._is_cpu:
            peak, before = _status_bytes("VmHWM", *_MAPPED), self._resident_before
            return None if peak is None or before is None else max(peak - before, 0)
        import torch

        with suppress(RuntimeError):
            # Zero too means that it keeps none: the weights at least are there.
            return torch.accelerator.max_memory_allocated(self._device) or None
        return None


def resident_bytes() -> int | None:
    """Return the resident memory of this process, as above; None where it is not Linux."""
    return _status_bytes("VmRSS", *_MAPPED)


def settled_bytes() -> int | None:
    """Return the same after what was freed is given back, which would be used again uncounted."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def _restart_resident_peak() -> None:
    with suppress(OSError):
        # 5 sets the peak to what is in use now (Linux's Documentation/filesystems/proc).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_bytes(key: str, *less: str) -> int | None:
    """Return a number of this process's status less others, None where it is not to be had."""
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    found = {words[0].removesuffix(":"): int(words[1]) * 1024 for words in lines}
    return found[key] - sum(found[name] for name in less) if key in found else None
