"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from detr_kit.config import AverageConfig
from detr_kit.errors import DetrKitError
from detr_kit.training.sharding import own_part, part_of, sharded_parts


def decay_at(step: int, config: AverageConfig) -> float:
    """Return the share of the old average that is kept after step `step`, counted from 0.

    min(decay, step / (step + c)): the average reaches back over 1 + step / c steps, until these
    are 1 / (1 - decay) at `warmup_steps`, which fixes c = warmup_steps (1 - decay) / decay. With
    c = 1 it is the plain mean of the weights after each step so far (Tarvainen & Valpola 2017, in
    their code), with c = 9 it rises as TensorFlow's `ExponentialMovingAverage` does. The initial
    weights drop out at the first step.
    """
    if step >= config.warmup_steps:
        return config.decay
    kept = step * config.decay
    return kept / (kept + config.warmup_steps * (1 - config.decay))


class WeightAverage:
    """Averages what training changes: trained parameters, and running statistics of norms.

    Running statistics are averaged too, not taken as they are, as they describe the features of
    the weights that they were gathered with: under the averaged weights the average is nearer.
    What training leaves alone (frozen parameters, constants) and counters are not stored: under
    `applied` they are the model's own. Averages of half precision are kept in float32.

    `model` is the bare one, on its device, after anything that replaces its tensors. In several
    processes each averages for itself: the weights are the same, running statistics its own.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self.config = config
        self._model = model
        self._sources = _changing_tensors(model)
        self._averages = {
            name: source.to(torch.promote_types(source.dtype, torch.float32), copy=True)
            for name, source in self._sources.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 0; the host does not wait.

        After a step whose update was left out the same weights count once more.
        """
        averages = [own_part(average) for average in self._averages.values()]
        sources = [
            own_part(source).to(average.dtype)
            for source, average in zip(self._sources.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, sources, 1 - decay_at(step, self.config))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while; afterwards its own, to the bit.

        Values change in place, so that whatever refers to the model's tensors stays right. Do not
        train inside.
        """
        with torch.no_grad():
            own = {name: source.clone() for name, source in self._sources.items()}
        try:
            self._write(self._averages)
            yield
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages under the model's names; the tensors themselves, not copies."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averages that `state_dict` returned.

        Raises DetrKitError where they are not those of this model's trained parameters.
        """
        odd = state.keys() ^ self._averages.keys()
        odd |= {
            name
            for name, average in self._averages.items()
            if name in state and state[name].shape != average.shape
        }
        if odd:
            raise DetrKitError(
                f"the averaged weights are not those of the parameters that are trained now: "
                f"{min(odd)}, {len(odd)} in all"
            )
        for name, average in self._averages.items():
            average.copy_(part_of(state[name], average))

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for part in sharded_parts(self._model):
            part.reshard()  # weights that were gathered for a forward are now of the past
        # copy_, unlike an assignment to .data, counts up the tensors' versions: this is how
        # positions.CachedResampler learns of it.
        for name, source in self._sources.items():
            source.copy_(values[name])


def _changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for module_name, module in model.named_modules():
        # A norm that is frozen keeps its statistics (models.backbones).
        if isinstance(module, _NormBase) and (module.weight is None or module.weight.requires_grad):
            tensors |= {
                f"{module_name}.{name}".removeprefix("."): buffer
                for name, buffer in module.named_buffers(recurse=False)
                if buffer.is_floating_point()
            }
    return tensors
