"""oneDNN's operators against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detronome.models.layers.attention import MultiHeadAttention
from detronome.models.layers.packed import PackedAttention, PackedConv2d, PackedLinear
from detronome.ops import onednn
from detronome.ops.onednn import Activation

pytestmark = pytest.mark.skipif(not onednn.is_available(torch.float32), reason="no oneDNN operators here")
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "silu": F.silu}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    channels=st.sampled_from([(3, 8), (8, 8), (16, 40), (7, 5)]),
    kernel=st.sampled_from([(1, 0), (2, 0), (3, 1), (5, 2), (7, 3)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    is_depthwise=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    has_residual=st.booleans(),
    channels_last=st.booleans(),
)
def test_convolutions(
    seed: int,
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    is_depthwise: bool,
    activation: Activation,
    has_residual: bool,
    channels_last: bool,
) -> None:
    torch.manual_seed(seed)
    c_in, c_out = (channels[1], channels[1]) if is_depthwise else channels
    groups = c_out if is_depthwise else 1
    conv = nn.Conv2d(c_in, c_out, kernel[0], stride, kernel[1], dilation, groups, bias=seed % 2 == 0)
    packed = PackedConv2d(conv)
    for batch, height, width in ((1, 17, 14), (2, 16, 23), (1, 17, 14)):
        x = torch.randn(batch, c_in, height, width)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        with torch.inference_mode():
            expected = conv(x)
            residual = torch.randn_like(expected) if has_residual and activation != "silu" else None
            before = None if residual is None else residual.clone()
            ours = packed(x, activation=activation, residual=residual)
            expected = expected if residual is None else expected + residual
            torch.testing.assert_close(ours, ACTIVATIONS[activation](expected), rtol=1e-4, atol=1e-4)
            if residual is not None and before is not None:
                assert torch.equal(residual, before)  # it may be a map that others read


@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    is_transposed=st.booleans(),
)
def test_linear_layers(rows: list[int], widths: tuple[int, int], is_transposed: bool) -> None:
    layer = nn.Linear(*widths)
    x = torch.randn(*rows, widths[0])
    if is_transposed:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(layer.weight, layer.bias)(x), layer(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(PackedLinear(layer.weight, None)(x), F.linear(x, layer.weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_self_attention", [True, False])
@pytest.mark.parametrize("has_mask", [True, False])
def test_attention(is_self_attention: bool, has_mask: bool) -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(32, 4).eval()
    nn.init.normal_(attention.in_proj_bias)
    query, value = torch.randn(2, 9, 32), torch.randn(2, 9 if is_self_attention else 13, 32)
    key = query if is_self_attention else torch.randn(2, 13, 32)
    mask = torch.randn(2, 1, 1, key.shape[1]) if has_mask else None
    with torch.inference_mode():
        torch.testing.assert_close(
            PackedAttention(attention)(query, key, value, mask), attention(query, key, value, mask)
        )


def test_what_torch_does_not_have_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    onednn.is_available.cache_clear()
    try:
        monkeypatch.setattr(onednn, "pack_conv", lambda *_: torch.ops.mkldnn.no_such_operator())
        assert not onednn.is_available(torch.float32)
    finally:
        onednn.is_available.cache_clear()
    monkeypatch.undo()
    assert onednn.is_available(torch.float32)
    assert not onednn.is_available(torch.float64)


def test_an_operator_that_computes_something_else_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    onednn.is_available.cache_clear()
    try:
        monkeypatch.setattr(onednn, "linear", lambda x, *_: x)
        assert not onednn.is_available(torch.float32)
    finally:
        onednn.is_available.cache_clear()
