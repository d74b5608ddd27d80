"""AdamW over named parameter groups: the backbone at its own rate, vectors with or without decay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detronome.engine.parallel import full_tensor, like

__all__ = ["build_optimizer", "freeze_backbone", "load_optimizer_tensors", "materialise_state", "optimizer_tensors"]


def build_optimizer(
    model: nn.Module, *, lr: float, backbone_lr: float, weight_decay: float, decay_one_dimensional: bool
) -> torch.optim.AdamW:
    """Return a fused AdamW over the trainable parameters.

    Groups are called `model` and `backbone` (parameter names that contain "backbone", as in the reference), each
    with a `_no_decay` twin where vectors are spared. `base_lr` keeps the rate that a schedule multiplies.
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
        decay = 0.0 if group.endswith("_no_decay") else weight_decay
        settings.append({"params": parameters, "name": group, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(settings, lr=lr, fused=True)


def freeze_backbone(model: nn.Module) -> None:
    """Let the backbone (parameter names that contain "backbone") stay as it is. Before the model is spread over ranks:
    what they sum up is settled then."""
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            parameter.requires_grad_(False)


def materialise_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the moments of a fused AdamW now, as zeros, where they are missing; bit for bit as its first update would.

    The update would make them when memory is fullest, and a trial of memory before it would not count them.
    """
    for group in optimizer.param_groups:
        assert group["fused"] and not group["amsgrad"], "other optimisers keep other state"
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's state as whole tensors named `<parameter>.<moment>`. Collective where it is sharded."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": full_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned, and nothing else. Collective where it is sharded."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, value in tensors.items():
        name, key = full_name.rsplit(".", 1)
        parameter = parameters[name]
        # AdamW keeps its step count on the parameter's device when fused. Moments must have the parameter's memory
        # layout (channels-last convolutions): the fused kernel walks both in the order in which they lie.
        is_moment = value.shape == parameter.shape
        optimizer.state[parameter][key] = like(value, parameter) if is_moment else value.to(parameter.device, copy=True)
