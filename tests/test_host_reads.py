"""The counter of host reads sees each kind of read, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.host_reads import HostRead, counting_host_reads

CPU = torch.device("cpu")


def reads_of(step: Callable[[Tensor], Any], values: Tensor) -> list[HostRead]:
    with counting_host_reads() as reads:
        step(values)
    return reads


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.numpy(), "numpy"),
        (np.asarray, "numpy"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.to("cpu"), "to"),
        (lambda x: x.to(device="cpu", dtype=torch.float64), "to"),
        (lambda x: x.sum().item(), "value"),
        (lambda x: float(x.sum()), "value"),
        (lambda x: int(x.sum()), "value"),
        (lambda x: bool(x.sum()), "value"),
        (lambda x: [1, 2, 3, 4][x.long()[0]], "value"),
        (lambda x: f"{x.sum():.2f}", "value"),
        (lambda x: torch.is_nonzero(x.sum()), "value"),
        (lambda x: torch.equal(x, x + 1), "equal"),
        (lambda x: (x > 0).all() and None, "value"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.where(x > 1), "nonzero"),
        (lambda x: x[x > 1], "mask"),
        (lambda x: x.masked_select(x > 1), "masked_select"),
        (lambda x: x.index_put_((x > 1,), torch.arange(2.0)), "mask"),
        (lambda x: x.unique(), "unique"),
        (lambda x: x.long().bincount(), "bincount"),
        (lambda x: x.repeat_interleave(x.long()), "repeat_interleave"),
    ],
)
def test_each_kind_of_read_is_seen_once(step: Callable[[Tensor], Any], kind: str) -> None:
    reads = reads_of(step, torch.arange(4.0))
    assert len(reads) == 1
    assert kind in reads[0].kind
    assert f"{__file__}:" in reads[0].where


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.to(CPU, non_blocking=True),
        lambda x: x.to(torch.float64),
        lambda x: x[torch.tensor([2, 0])],
        lambda x: torch.where(x > 1, x, 0.0),
        lambda x: x.masked_fill_(x > 1, 0.0),
        lambda x: x.repeat_interleave(x.long(), output_size=6),
        lambda x: torch.from_numpy(np.arange(3)),
        lambda x: len(x) + x.shape[0],
    ],
)
def test_what_needs_no_value_is_not_counted(step: Callable[[Tensor], Any]) -> None:
    assert reads_of(step, torch.arange(4.0)) == []


def test_what_came_to_the_host_is_read_freely() -> None:
    def step(x: Tensor) -> None:
        first, *_ = x.cpu().split(2)
        assert first.numpy().sum() + first[1].item() + (2 * first).tolist()[1] == 4.0

    assert [read.kind for read in reads_of(step, torch.arange(4.0))] == ["cpu"]


def test_a_copy_on_the_host_does_not_excuse_its_original() -> None:
    def step(x: Tensor) -> None:
        x.cpu()
        x.tolist()

    assert [read.kind for read in reads_of(step, torch.arange(4.0))] == ["cpu", "tolist"]


def test_reads_in_the_backward_pass_are_seen() -> None:
    def step(x: Tensor) -> None:
        x.register_hook(lambda gradient: gradient.sum().item() and None)
        (2 * x).sum().backward()

    assert len(reads_of(step, torch.arange(4.0, requires_grad=True))) == 1


def test_other_threads_are_not_counted() -> None:
    def step(x: Tensor) -> None:
        thread = threading.Thread(target=x.tolist)
        thread.start()
        thread.join()

    assert reads_of(step, torch.arange(4.0)) == []


def test_tensors_are_as_before_afterwards() -> None:
    before = (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.to)
    reads_of(lambda x: x.cpu(), torch.arange(4.0))
    assert (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.to) == before
    assert {"cpu", "numpy", "tolist", "to"}.isdisjoint(vars(Tensor))
