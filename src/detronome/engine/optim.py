"""AdamW over named parameter groups: the backbone at its own rate, vectors with or without decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["build_optimizer", "load_optimizer_tensors", "optimizer_tensors"]


def build_optimizer(
    model: nn.Module, *, lr: float, backbone_lr: float, weight_decay: float, decay_one_dimensional: bool
) -> torch.optim.AdamW:
    """Return a fused AdamW over the trainable parameters.

    Groups are called `model` and `backbone` (parameter names that contain "backbone", as in the reference), each
    with a `_no_decay` twin where vectors are spared. `base_lr` keeps the rate that a schedule multiplies.
    A group with rate 0 is left out and its parameters stay fixed.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = "backbone" if "backbone" in name else "model"
        if parameter.ndim <= 1 and not decay_one_dimensional:
            group += "_no_decay"
        groups.setdefault(group, []).append(parameter)
    settings = []
    for group, parameters in sorted(groups.items(), reverse=True):
        rate = backbone_lr if group.startswith("backbone") else lr
        if rate == 0:
            for parameter in parameters:
                parameter.requires_grad_(False)
            continue
        decay = 0.0 if group.endswith("_no_decay") else weight_decay
        settings.append({"params": parameters, "name": group, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(settings, lr=lr, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's state as flat tensors named `<parameter>.<moment>`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, key = full_name.rsplit(".", 1)
        parameter = parameters[name]
        # AdamW keeps its step count on the parameter's device when fused. Moments must have the parameter's memory
        # layout (channels-last convolutions): the fused kernel walks both in the order in which they lie.
        like = parameter if value.shape == parameter.shape else value
        optimizer.state[parameter][key] = torch.empty_like(like, dtype=value.dtype, device=parameter.device).copy_(
            value
        )
