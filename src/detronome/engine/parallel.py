"""One model on one rank or many: torch's DistributedDataParallel (DDP) or FSDP2 behind three verbs.

A step first runs all micro-batches of a rank, and only then are gradients summed over the ranks. With DDP nothing is
in flight while memory can run out, so a rank that must start its step again keeps nobody waiting in a collective; the
price is that the sum does not overlap with backward.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from detronome.errors import ConfigError
from detronome.models.detector import Detector
from detronome.runtime.distributed import World

__all__ = ["Parallel", "Replicated", "Sharded", "full_tensor", "like"]

_PARAMETERS_OF_A_PROJECTION = 2
"""Layers with no more are not worth a collective of their own."""


class Parallel:
    """Training in one process; base of the others.

    Args:
        model: the model, the same on all ranks; `self.model` is the one to use from here on.
        world: the ranks.
    """

    can_run_alone = True
    """Whether one rank may run forward and backward while the others do something else."""

    def __init__(self, model: Detector, world: World) -> None:
        self.model = model
        self.world = world

    def sum_gradients(self) -> None:
        """Make every rank's gradients the sum over all ranks. Every rank must call it."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks of a tensor on the device, without a host sync."""
        return tensor

    def before_backward(self, *, is_last: bool) -> None:
        """Announce the forward and backward pass of a micro-batch, the last of the step or not."""

    def for_evaluation(self, model: Detector) -> Detector:
        """Return a whole, ordinary model with the weights of `model` (this one or its average). Collective."""
        self._share_statistics(model)
        return model

    def weights(self, model: Detector) -> dict[str, Tensor]:
        """Return all weights and buffers of `model`, whole. Collective."""
        return model.state_dict()

    def load_weights(self, model: Detector, weights: Mapping[str, Tensor]) -> None:
        """Put whole weights back. Collective."""
        model.load_state_dict(dict(weights))

    def _share_statistics(self, model: Detector) -> None:
        """Give all ranks rank 0's BatchNorm statistics: each has seen its own images."""
        if self.world.size == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for buffer in module.buffers(recurse=False):
                    dist.broadcast(buffer, src=0)


class Replicated(Parallel):
    """The whole model on each rank: DDP.

    DDP's reducer sums what has been accumulated when the model's own passes are over, through a pass of a module that
    touches every parameter with a zero gradient: a rank without images or objects takes part like any other.
    """

    def __init__(self, model: Detector, world: World) -> None:
        super().__init__(model, world)
        # DDP's averages would make a rank with few images count as much as one with many.
        self._reducer = DistributedDataParallel(_Touch(p for p in model.parameters() if p.requires_grad))
        self._reducer.register_comm_hook(None, lambda state, bucket: _sum(bucket.buffer()))
        # DDP orders its buckets anew after its first pass, and sums of three ranks round by their order: without this
        # pass the first step of a process, so also of a resume, would round otherwise than all others.
        self.sum_gradients()
        model.zero_grad(set_to_none=True)

    def sum_gradients(self) -> None:
        with warnings.catch_warnings():
            # Of 1x1 convolutions, whose strides mean nothing.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self._reducer().backward()

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor


class Sharded(Parallel):
    """A part of each layer on each rank: FSDP2. Every forward pass is a collective: all ranks must do as many.

    Raises:
        ConfigError: none of these layers is to be trained.
    """

    can_run_alone = False

    def __init__(self, model: Detector, world: World, device_type: str) -> None:
        super().__init__(model, world)
        self._whole = copy.deepcopy(self.model).requires_grad_(False)
        self._mesh = init_device_mesh(device_type, (world.size,))
        self.shard(self.model)
        # Their outputs are where FSDP2 learns that backward runs: without one that learns, gradients stay unsummed.
        layers = [module for module in self.model.modules() if isinstance(module, FSDPModule)][1:]
        if not any(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
            raise ConfigError(
                "train.freeze leaves no layer to train that FSDP shards on its own, and without one it does not work",
                where="train.parallel",
                fix="set train.parallel=ddp: so little that learns needs little memory",
            )

    def shard(self, model: Detector) -> None:
        """Keep this rank's part of each layer, in place."""
        model.to(memory_format=torch.contiguous_format)  # the only one that FSDP2 knows
        layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
        for layer in reversed(layers):  # the inner ones first
            if len(list(layer.parameters())) > _PARAMETERS_OF_A_PROJECTION:
                fully_shard(layer, mesh=self._mesh)
        fully_shard(model, mesh=self._mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def before_backward(self, *, is_last: bool) -> None:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(is_last)

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def for_evaluation(self, model: Detector) -> Detector:
        self._whole.load_state_dict(self.weights(model))
        self._share_statistics(self._whole)
        return self._whole.eval()

    def weights(self, model: Detector) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))  # type: ignore[assignment]
        return weights

    def load_weights(self, model: Detector, weights: Mapping[str, Tensor]) -> None:
        set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True))


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor whole, any other as it is. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor laid out over ranks, device and memory as a parameter of its shape is. Collective."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class _Touch(nn.Module):
    """Depends on every given parameter, with a zero gradient."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.touched = nn.ParameterList(parameters)

    def forward(self) -> Tensor:
        return torch.stack([parameter.sum() for parameter in self.touched]).sum() * 0


def _sum(buffer: Tensor) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(buffer, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
