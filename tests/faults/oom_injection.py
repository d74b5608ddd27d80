"""Memory that runs out on demand: a model whose forward or backward fails for micro-batches that are too large."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB (injected)"


@dataclass
class Injection:
    """What has happened so far."""

    calls: list[tuple[int, int, int]] = field(default_factory=list)
    """Images, height and width of every forward pass."""
    num_failures: int = 0


@contextmanager
def out_of_memory(
    model: nn.Module,
    *,
    max_images: int | None = None,
    max_pixels: int | None = None,
    during: Literal["forward", "backward"] = "forward",
    calls: Collection[int] | None = None,
    error: type[Exception] = torch.OutOfMemoryError,
    message: str = MESSAGE,
) -> Iterator[Injection]:
    """Let passes of a detector fail that have more images or more pixels than they may.

    Args:
        model: its forward takes the images first.
        max_images: the most images of one pass; any number when None.
        max_pixels: the most pixels of all images of one pass, padding included; any number when None.
        during: where the pass fails: before the model's forward, or in the middle of its backward.
        calls: numbers of the passes that may fail, counted from 0; all of them when None (a lack that lasts).
        error: what is raised.
        message: the error's text.
    """
    injection = Injection()

    def fail() -> None:
        injection.num_failures += 1
        raise error(message)

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        num_images, _, height, width = args[0].shape
        injection.calls.append((num_images, height, width))
        if during == "forward" and is_too_large():
            fail()

    def accumulated(_: Tensor) -> None:
        if during == "backward" and is_too_large():
            fail()

    def is_too_large() -> bool:
        num_images, height, width = injection.calls[-1]
        is_meant = calls is None or len(injection.calls) - 1 in calls
        is_over = (max_images is not None and num_images > max_images) or (
            max_pixels is not None and num_images * height * width > max_pixels
        )
        return is_meant and is_over

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [model.register_forward_pre_hook(before)]
    if trained:
        # A parameter amid the others: some gradients have been added by then, the others not.
        hooks.append(trained[len(trained) // 2].register_post_accumulate_grad_hook(accumulated))
    try:
        yield injection
    finally:
        for hook in hooks:
            hook.remove()
