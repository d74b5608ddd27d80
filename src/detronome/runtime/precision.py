"""Mixed precision: which number format a run computes in, and the context that does it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

__all__ = ["Precision", "autocast", "dtype_of", "resolve_precision"]

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: Precision) -> torch.dtype:
    """Return what tensors of a precision hold."""
    return _DTYPES[precision]


def resolve_precision(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> tuple[Precision, str]:
    """Return the precision for a device and the reason for it.

    `auto` takes bf16 where a CUDA device computes in it, fp16 on older ones, fp32 elsewhere: bf16 has fp32's range,
    so it needs no loss scaling and does not overflow in attention logits.
    """
    if name != "auto":
        return name, "asked for"
    if device.type != "cuda":
        return "fp32", f"{device.type} trains in full precision unless asked otherwise"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "the device computes in bf16, which keeps fp32's range"
    return "fp16", "the device has no bf16; gradients are scaled"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which forward passes run."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype_of(precision))
