"""Weights, gradients and the optimiser's state divided over the processes (Zhao et al. 2023, FSDP).

torch's `fully_shard` is used as it is. Accelerate's plugin for it leaves CPUs out, writes into the
environment of the process, and rounds the weights themselves to half precision, with which
evaluation would not give what the saved detector gives. Here weights stay in full precision and
autocast rounds them, as without sharding.

What is saved is whole tensors, the same files that an undivided run writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map

from detr_kit.config import RunConfig
from detr_kit.errors import DetrKitError
from detr_kit.models.anchor_decoder import AnchorDecoderLayer
from detr_kit.models.deformable_encoder import DeformableEncoderLayer
from detr_kit.models.transformer import DecoderLayer, EncoderLayer

_LAYERS = (EncoderLayer, DecoderLayer, DeformableEncoderLayer, AnchorDecoderLayer)


def require_shardable(config: RunConfig) -> None:
    """Raise DetrKitError for keys that do not go with `sharding: fsdp`."""
    if config.sharding == "none":
        return
    refused = (
        # The undivided model would have to fit for a try.
        (config.batch_size == "auto", "batch_size=auto: give a number"),
        (config.precision == "fp16", "precision=fp16: take bf16, or fp32"),
        (config.compile, "compile=true: leave it out"),
    )
    for is_asked_for, what in refused:
        if is_asked_for:
            raise DetrKitError(f"sharding={config.sharding} does not go with {what}")


def shard(model: nn.Module, device: torch.device) -> None:
    """Divide a model's weights over all processes, in place, and bring them to `device`.

    Every process brings the same weights. A forward pass gathers those of one transformer layer at
    a time, those outside of the layers for all of it; so does the backward pass, which leaves each
    process the means of its part of the gradients. All of it waits for the other processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in model.modules():
        if isinstance(module, _LAYERS):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def sharded_parts(model: nn.Module) -> list[Any]:
    """Return the modules whose weights are gathered together; none of a model that is whole."""
    if not distributed.is_available() or not distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Let every process hold all weights for a while, whole ones; all enter and leave it together.

    What runs inside waits for no other process, so that each may run as many batches as it has.
    Weights must not be changed inside; gradients are those of the process, and gone afterwards.
    """
    parts = sharded_parts(model)
    # Not under inference mode, which would make weights of a kind that cannot be trained.
    with torch.inference_mode(False), torch.no_grad():
        for part in parts:
            part.unshard()
    _let_stay(parts, True)
    try:
        yield
    finally:
        if parts:
            model.zero_grad(set_to_none=True)
        _let_stay(parts, False)
        for part in parts:
            part.reshard()


def _let_stay(parts: list[Any], stay: bool) -> None:
    for index, part in enumerate(parts):
        # Those outside of the layers, the first part, are needed until the backward pass is over.
        part.set_reshard_after_forward(not stay and index > 0, recurse=False)
        part.set_reshard_after_backward(not stay, recurse=False)
        part.set_requires_gradient_sync(not stay, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """Return a divided tensor as a whole, any other as it is; all processes call it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a divided tensor, any other as it is; memory is shared."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def whole_state(state: Any, *, keep: bool) -> Any:
    """Return nested state with whole tensors, on the host, for divided ones; all processes call it.

    Where `keep` is False, None stands for them: one process is enough to save them. One tensor at
    a time is gathered, so that no device has to hold all.
    """

    def collect(leaf: Any) -> Any:
        if not hasattr(leaf, "full_tensor"):
            return leaf
        tensor = whole(leaf)
        return tensor.cpu() if keep else None

    return tree_map(collect, state)


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return what `like` holds of a whole tensor: a part, divided alike, or all of it."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # Every process has the whole tensor: nothing has to be sent.
    divided = distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
    # A copy, as the part would keep all of the whole tensor's memory.
    return torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(divided)


def part_of_weights(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return what the model holds of whole weights, by name; unknown names stay."""
    own = model.state_dict()
    return {
        name: part_of(tensor, own[name]) if name in own else tensor
        for name, tensor in weights.items()
    }


def part_of_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what the optimiser holds of a whole `state_dict`."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        index: {
            name: part_of(value, weights[index])
            if isinstance(value, Tensor) and value.shape == weights[index].shape
            else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
        if index < len(weights)  # what belongs to another optimiser is left to it to refuse
    }
    return {**state, "state": moments}
