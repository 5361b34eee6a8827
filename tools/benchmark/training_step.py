"""Print detr_kit's training step beside that of Hugging Face transformers, in one run.

    python tools/benchmark/training_step.py [--family detr yolos] [--sizes 512 800] [--mixed]
        [--device cuda] [--precision fp32 tf32 bf16] [--compile] [--attention sdpa eager]

Both sides have the same drawn weights, DETR-R50 or YOLOS-S with 91 classes, and learn from the
same pictures (coco_mini's in ../shared/data, or generated ones), in train mode, with the same
frozen layers, the losses of all decoder layers, gradients clipped to 0.1, AdamW at 1e-4 and 1e-5.
First it is printed how far outputs and losses differ in evaluation mode.

- `detr_kit` takes uint8 pictures to the device and normalises them there.
- `transformers, ATTENTION` takes pictures that are normalised already, which is not counted. It
  does what its Trainer does between two batches; `--adamw` is fused by default, as there.
- transformers' configs leave out two of DETR's dropouts, on attention weights and inside the MLP,
  which detr_kit has; with `--official-dropout` both have them. YOLOS has none at all.

The sides step by turns. A ratio is detr_kit's time divided by the peer's in the same turn; below 1
detr_kit is faster. Memory is the most that a step adds to the weights, each side in a process of
its own: on a GPU what PyTorch allocates, on a CPU resident memory (needs Linux). Then come where
the time goes, in separate steps that wait for the device after each stage; and how often a step
reads a value of the device on the host. `--operators N` adds the N longest operators of each side.
On a CPU that others use too, `OMP_WAIT_POLICY=passive` and `--clock cpu` count the time that its
threads worked for a side, added up.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from step_agreement import BOUND, agreement
from step_batches import StepBatch, source, step_batch
from step_sides import FAMILIES, OurSide, PeerSide, Side, load_ours, load_peer, write_peer
from step_stages import host_reads, stage_seconds

WARM_UP = 2
MEMORY_STEPS = 3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PRECISIONS = ("fp32", "tf32", "bf16")
OURS = "detr_kit"


def build_side(
    name: str, folder: Path, batch: StepBatch, precision: str, arguments: argparse.Namespace
) -> Side:
    """Return `OURS` or the peer with an attention of the given name."""
    device = torch.device(arguments.device)
    if name == OURS:
        return OurSide(load_ours(folder), batch, device, precision, compiled=arguments.compile)
    return PeerSide(
        load_peer(folder, name, official_dropout=arguments.official_dropout),
        batch,
        device,
        precision,
        compiled=arguments.compile,
        attention=name,
        adamw=arguments.adamw,
    )


def set_precision(precision: str) -> None:
    """Say what fp32 operations may do; as detr_kit's trainer does, for both sides."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def turn_seconds(side: Side, arguments: argparse.Namespace) -> float:
    now = CLOCKS[arguments.clock]
    start = now()
    for _ in range(arguments.steps):
        side.step()
    if arguments.device != "cpu":
        torch.cuda.synchronize(arguments.device)
    return (now() - start) / arguments.steps


def print_times(sides: list[Side], arguments: argparse.Namespace) -> None:
    turns = [
        [turn_seconds(side, arguments) for side in sides]
        for _ in range(WARM_UP + arguments.repeats)
    ]
    milliseconds = np.array(turns[WARM_UP:]) * 1e3
    print(f"  {'':24}{'ms a step':^27}{'detr_kit / it':^27}")
    print(f"  {'':24}{'min':>9}{'median':>9}{'max':>9}{'min':>9}{'median':>9}{'max':>9}")
    for column, side in enumerate(sides):
        own = milliseconds[:, column]
        line = f"  {side.name:24}{own.min():9.1f}{np.median(own):9.1f}{own.max():9.1f}"
        if column:
            ratio = milliseconds[:, 0] / own
            line += f"{ratio.min():9.3f}{np.median(ratio):9.3f}{ratio.max():9.3f}"
        print(line)


def print_stages(sides: list[Side], arguments: argparse.Namespace) -> None:
    """Print a stage's time on each side, with a total over stages like "forward: backbone"."""
    device = torch.device(arguments.device)
    repeats, now = max(arguments.repeats // 2, 2), CLOCKS[arguments.clock]
    found = [stage_seconds(side.step, side.stages(), device, repeats, now) for side in sides]
    names = list(dict.fromkeys(name for seconds in found for name in seconds))
    groups = list(dict.fromkeys(name.split(":")[0] for name in names))
    print(f"  {'ms a step, by stage':28}" + "".join(f"{side.name:>22}" for side in sides))
    for group in groups:
        parts = [name for name in names if name.split(":")[0] == group]
        lines = [(group, parts)] + [(f"  {part}", [part]) for part in parts if len(parts) > 1]
        for label, members in lines:
            sums = [sum(seconds.get(name, 0.0) for name in members) for seconds in found]
            print(f"  {label:28}" + "".join(f"{value * 1e3:22.1f}" for value in sums))
    totals = [sum(seconds.values()) for seconds in found]
    print(f"  {'in all':28}" + "".join(f"{value * 1e3:22.1f}" for value in totals))


def print_reads(sides: list[Side], device: torch.device) -> None:
    for side in sides:
        reads = host_reads(side.step, device)
        waits = reads.pop("synchronising", None)
        kinds = ", ".join(f"{count} {name}" for name, count in reads.most_common())
        line = f"  host reads a step, {side.name}: {reads.total()} ({kinds})"
        print(line if waits is None else f"{line}; PyTorch warns of {waits} waits")


def print_operators(side: Side, device: torch.device, count: int) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        side.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    print(f"\n  the longest operators of a step, {side.name}")
    order = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=count, max_name_column_width=40))


def peak_memory(side: Side, device: torch.device) -> int:
    """Return the bytes that steps add at most to what the model and its batch take."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(MEMORY_STEPS):
            side.step()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else, freed memory of the loading would be filled first
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in use now
    before = _status_bytes("VmRSS")
    for _ in range(MEMORY_STEPS):
        side.step()
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def print_memory(names: list[str], family: str, folder: Path, size: int, precision: str) -> None:
    """Start this script once a side, with the options of this run."""
    for name in names:
        own = ["--memory-of", name, "--folder", str(folder)]
        own += ["--family", family, "--sizes", str(size), "--precision", precision]
        # The last of two equal options counts.
        command = [sys.executable, *sys.argv, *own]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        title = name if name == OURS else f"transformers, {name}"
        print(f"  {title:24}{int(done.stdout) / 2**20:9.0f} MiB beyond the weights")


def print_agreement(folder: Path, batch: StepBatch) -> None:
    found = agreement(load_ours(folder), load_peer(folder, "sdpa"), batch)
    text = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    print(f"  in evaluation mode they differ by: {text}")
    if not all(value <= BOUND for value in found.values()):
        raise SystemExit(f"more than {BOUND}: these are not the same detectors")


def compare(family: str, size: int, precision: str, arguments: argparse.Namespace) -> None:
    batch = step_batch(size, arguments.batch, mixed=arguments.mixed)
    compiled = ", compiled" if arguments.compile else ""
    print(f"\n{family}, {precision}{compiled}, {len(batch.images)} x {batch}")
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_peer(family, folder)
        set_precision("fp32")
        print_agreement(folder, batch)
        set_precision(precision)
        names = [OURS, *arguments.attention]
        sides = [build_side(name, folder, batch, precision, arguments) for name in names]
        print_times(sides, arguments)
        if not arguments.no_memory:
            print_memory(names, family, folder, size, precision)
    print_stages(sides, arguments)
    print_reads(sides, device)
    if arguments.operators:
        for side in sides:
            print_operators(side, device, arguments.operators)


def print_setting(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{what}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, {source()}")
    dropout = "the official" if arguments.official_dropout else "its own"
    print(
        f"turns of {arguments.steps} step(s), {arguments.repeats} after {WARM_UP}, "
        f"{arguments.clock} time; "
        f"transformers {version('transformers')} with AdamW {arguments.adamw}, {dropout} dropouts"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="detr_kit's training step beside transformers'")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 800])
    parser.add_argument("--mixed", action="store_true", help="padded batches of uneven pictures")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--attention", nargs="+", choices=("sdpa", "eager"), default=["sdpa"])
    parser.add_argument("--official-dropout", action="store_true", help="for transformers' DETR")
    parser.add_argument("--adamw", choices=("fused", "foreach", "loop"), default="fused")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--steps", type=int, default=1, help="steps a turn, timed together")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, help="of the CPU; else what PyTorch takes")
    parser.add_argument("--operators", type=int, default=0)
    parser.add_argument("--no-memory", action="store_true", help="start no further processes")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # for the processes that measure it
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        (size,), (precision,) = arguments.sizes, arguments.precision
        set_precision(precision)
        batch = step_batch(size, arguments.batch, mixed=arguments.mixed)
        side = build_side(arguments.memory_of, arguments.folder, batch, precision, arguments)
        print(peak_memory(side, torch.device(arguments.device)))
        return
    print_setting(arguments)
    for family in arguments.family:
        for size in arguments.sizes:
            for precision in arguments.precision:
                compare(family, size, precision, arguments)


if __name__ == "__main__":
    main()
