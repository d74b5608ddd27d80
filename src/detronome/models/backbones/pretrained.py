"""Filling a backbone with trained weights, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from detronome.errors import CheckpointError, Problem

__all__ = ["download_weights", "fill_backbone", "read_weights"]


def fill_backbone(network: nn.Module, state: Mapping[str, Tensor], *, name: str, where: str) -> None:
    """Load weights into a network; what the file has beyond it (a classifier) is ignored.

    Args:
        network: changed in place.
        state: weights by the network's names.
        name: what the network is called, for messages.
        where: the weights' origin, for messages.

    Raises:
        CheckpointError: weights are missing or have other shapes.
    """
    wanted = network.state_dict()
    problems = [
        Problem(what=f"{key} is missing", where=where)
        if key not in state
        else Problem(what=f"{key} has shape {tuple(state[key].shape)}, not {tuple(value.shape)}", where=where)
        for key, value in wanted.items()
        if not key.endswith("num_batches_tracked") and (key not in state or state[key].shape != value.shape)
    ]
    if problems:
        extra = [Problem(what=f"and {len(problems) - 3} more like these")] if len(problems) > 3 else []
        fix = Problem(
            what=f"these are not weights for {name}",
            where=where,
            fix="give a state dict of the network of that name, or `--set model.backbone=...` to match it",
        )
        raise CheckpointError([fix, *problems[:3], *extra])
    # strict=False: the file may hold the classifier, and lack counters of batches that nothing reads.
    network.load_state_dict(state, strict=False)


def download_weights(fetch: Callable[[], Mapping[str, Tensor]], *, name: str, url: str) -> dict[str, Tensor]:
    """Return published weights.

    Args:
        fetch: gets them, from a cache where they are there.
        name: what the network is called, for messages.
        url: where they are published.

    Raises:
        CheckpointError: they cannot be had.
    """
    try:
        return dict(fetch())
    except (URLError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the ImageNet weights of {name} could not be downloaded: {error}",
            where=url,
            fix="download that file elsewhere and `--set model.backbone_weights=FILE`; or start from random weights "
            "with `--set model.backbone_weights=none` (then `--set model.backbone_norm=trainable "
            "--set model.frozen_stages=0` too)",
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .pth or .safetensors file, read safely.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(
            "the file with the backbone's weights does not exist",
            where=str(path),
            fix="`--set model.backbone_weights=` takes `imagenet`, `none` or the path of a .pth or .safetensors file",
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"the backbone's weights cannot be read: {error}",
            where=str(path),
            fix="give a plain state dict, saved with torch.save(network.state_dict(), FILE) or as safetensors",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            "the file with the backbone's weights is not a plain state dict",
            where=str(path),
            fix="save only network.state_dict()",
        )
    return state
