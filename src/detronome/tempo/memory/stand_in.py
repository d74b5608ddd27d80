"""Lets a step believe that its tensors without data are on a real device: the same branches, the same formats.

A `meta` tensor knows no values and has no autocast, no fused attention and no dropout with a mask of bytes. Here the
step is told that it runs on a CPU or a GPU, and what these have of their own is put in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint as checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detronome.errors import ConfigError

__all__ = ["DeviceType", "StandIn", "allowances"]

DeviceType = Literal["cpu", "cuda"]

_NAMES: Mapping[DeviceType, str] = {"cpu": "cpu", "cuda": "xpu"}
"""What tensors say of themselves. An `xpu` is no CPU either, and its autocast can be turned on without a driver."""

_FACTORIES = {
    torch.arange,
    torch.empty,
    torch.from_numpy,
    torch.full,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.tensor,
    torch.zeros,
}
_GET_DEVICE = torch.Tensor.device.__get__

# What autocast does, by device: torch's documentation, "Autocast Op Reference".
_LOW_PRECISION = {
    F.conv2d,
    F.linear,
    F.scaled_dot_product_attention,
    Tensor.__matmul__,
    Tensor.matmul,
    torch.addmm,
    torch.baddbmm,
    torch.bmm,
    torch.einsum,
    torch.matmul,
    torch.mm,
}
_FULL_PRECISION: Mapping[DeviceType, set[Callable[..., Any]]] = {
    "cpu": {F.grid_sample, torch.prod, Tensor.prod},
    "cuda": {
        F.layer_norm,
        F.log_softmax,
        F.softmax,
        F.softplus,
        Tensor.__pow__,
        Tensor.cumsum,
        Tensor.exp,
        Tensor.log,
        Tensor.log_softmax,
        Tensor.pow,
        Tensor.prod,
        Tensor.softmax,
        Tensor.sum,
        torch.cumsum,
        torch.exp,
        torch.layer_norm,
        torch.log,
        torch.log_softmax,
        torch.pow,
        torch.prod,
        torch.softmax,
        torch.sum,
    },
}
_WIDEST = {F.grid_sample, torch.addcdiv, torch.addcmul}
"""A GPU computes these in the widest format among their arguments."""


class StandIn(TorchFunctionMode):
    """Makes `meta` tensors behave like those of a device, as far as memory and branches go.

    Questions about values are answered for the worst: there is padding. What is read on the host is zeros.

    Args:
        device_type: of the device that is played.
    """

    def __init__(self, device_type: DeviceType) -> None:
        super().__init__()
        self.device = torch.device(_NAMES[device_type])
        self._device_type = device_type
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}
        self._in_backward = False

    def forget_casts(self) -> None:
        """Let go of the weights' copies in low precision, as autocast does at its end."""
        self._casts.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == _GET_DEVICE:  # a new object at each access
            return self.device
        if func is torch.device:
            return func(*args, **kwargs)
        if func is Tensor.__bool__:
            return True
        if func is Tensor.numpy:
            return np.zeros(args[0].shape, _numpy_dtype(args[0].dtype))
        if func is Tensor.cpu:
            return args[0]
        if func is Tensor.backward:
            return self._backward(args[0])
        if func is torch.from_numpy:
            return func(*args).to("meta")
        args = tuple(_moved(value) for value in args)
        kwargs = {name: _moved(value) for name, value in kwargs.items()}
        if func in _FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = torch.device("meta")
        if torch.is_autocast_enabled(self.device.type):
            args, kwargs = self._autocast(func, args, kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.dropout and self._device_type == "cuda":
            return _dropout_of_gpu(*args, **kwargs)
        return func(*args, **kwargs)

    def _backward(self, loss: Tensor) -> None:
        # What is checkpointed runs forward again in there, and must find the stand-in as it was. torch's own function
        # would leave it first, as every function does that it is asked about.
        self._in_backward = True
        try:
            with self:
                engine = torch.autograd.Variable._execution_engine
                engine.run_backward(
                    (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        finally:
            self._in_backward = False

    def _autocast(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if func in _LOW_PRECISION:
            dtype = torch.get_autocast_dtype(self.device.type)
        elif func in _FULL_PRECISION[self._device_type]:
            dtype = torch.float32
        elif func in _WIDEST and self._device_type == "cuda":
            dtype = max((value.dtype for value in args if isinstance(value, Tensor)), key=lambda d: d.itemsize)
        else:
            return args, kwargs
        return (
            tuple(self._cast(value, dtype) for value in args),
            {name: self._cast(value, dtype) for name, value in kwargs.items()},
        )

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point or value.dtype == dtype:
            return value
        is_kept = value.is_leaf and value.requires_grad and value.dtype == torch.float32 and not self._in_backward
        if not is_kept or dtype == torch.float32:
            return value.to(dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = (value, value.to(dtype))
        return self._casts[id(value)][1]

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask, -math.inf)
        if self._device_type == "cpu":
            attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, dropout_p, is_causal, attn_mask=attn_mask
            )[0]
            return attended
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        # Flash attention, which knows no mask, keeps the same for the backward pass.
        attended = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal
        )[0]
        return attended


@contextmanager
def allowances() -> Iterator[None]:
    """Let torch take `meta` tensors where it would refuse them, in this process, for as long as a trace takes.

    Kernels that work on lists of tensors are only for devices that torch has listed; and checkpointing compares the
    devices of what it computes again, which are called by either name. Neither list is part of torch's public face.

    Raises:
        ConfigError: this torch has no such lists.
    """
    try:
        from torch.utils import _foreach_utils as foreach_utils

        supported = foreach_utils._get_foreach_kernels_supported_devices
        checks = checkpoint._allowed_determinism_checks_to_fns
        check = checks["default"]
    except (ImportError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"a step cannot be traced with torch {torch.__version__}, which has changed inside ({error})",
            where="the plan of the memory",
            fix="plan with another version of torch, e.g. 2.15; to train without a plan, set batch.micro_batch_size",
        ) from error
    foreach_utils._get_foreach_kernels_supported_devices = lambda: [*supported(), "meta"]
    checks["default"] = lambda _: {}
    try:
        yield
    finally:
        foreach_utils._get_foreach_kernels_supported_devices = supported
        checks["default"] = check


def _dropout_of_gpu(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Return torch's fused dropout, which keeps a byte for each value."""
    if not training or p == 0.0:
        return x
    dropped: Tensor = torch.native_dropout(x, p, True)[0]
    return x.copy_(dropped) if inplace else dropped


def _moved(value: Any) -> Any:
    """Return `meta` for a device."""
    if isinstance(value, torch.device) or (isinstance(value, str) and value in _NAMES.values()):
        return torch.device("meta")
    return value


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    numpy: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    return numpy
