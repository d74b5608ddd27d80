"""The building blocks: frozen norm, position encoding, attention, dropout, normaliser."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detronome.models.layers.attention import MultiHeadAttention, additive_mask
from detronome.models.layers.conv_norm import ConvNorm
from detronome.models.layers.deformable_attention import MultiScaleDeformableAttention
from detronome.models.layers.dropout import Dropout, dropout
from detronome.models.layers.frozen_batch_norm import FrozenBatchNorm2d
from detronome.models.layers.image_normalizer import ImageNormalizer
from detronome.models.layers.mlp import MLP
from detronome.models.layers.position_encoding import SinePositionEncoding, cell_position_encoding
from detronome.models.layers.tokens import tokens_of


class TestFrozenBatchNorm:
    def test_equals_batch_norm_in_evaluation(self) -> None:
        norm, reference = _random_batch_norm()
        x = torch.randn(2, 5, 3, 4)
        torch.testing.assert_close(norm(x), reference.eval()(x))

    def test_has_nothing_to_train_and_ignores_the_batch_counter(self) -> None:
        norm, reference = _random_batch_norm()
        assert not list(norm.parameters())
        assert "num_batches_tracked" in reference.state_dict()
        assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}

    def test_does_not_change_the_state_dict_it_loads(self) -> None:
        _, reference = _random_batch_norm()
        state = reference.state_dict()
        FrozenBatchNorm2d(5).load_state_dict(state)
        assert "num_batches_tracked" in state

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_keeps_the_dtype_of_its_input(self, dtype: torch.dtype) -> None:
        assert FrozenBatchNorm2d(5)(torch.randn(1, 5, 2, 2, dtype=dtype)).dtype == dtype

    def test_follows_buffers_that_change(self) -> None:
        norm = FrozenBatchNorm2d(1)
        x = torch.ones(1, 1, 1, 1)
        before = norm(x)
        norm.weight.fill_(3.0)
        torch.testing.assert_close(norm(x), 3 * before)


class TestSinePositionEncoding:
    def test_matches_the_formula(self) -> None:
        encoding = SinePositionEncoding(8)(torch.zeros(1, 3, 4, dtype=torch.bool))
        y, x = 2 / 3 * 2 * math.pi, 1 / 4 * 2 * math.pi
        expected = [math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100)]
        expected += [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)]
        torch.testing.assert_close(encoding[0, 1, 0], torch.tensor(expected), atol=1e-5, rtol=0)

    def test_padding_does_not_move_the_image(self) -> None:
        padding_mask = torch.ones(1, 5, 7, dtype=torch.bool)
        padding_mask[:, :3, :4] = False
        encode = SinePositionEncoding(16)
        torch.testing.assert_close(encode(padding_mask)[:, :3, :4], encode(torch.zeros(1, 3, 4, dtype=torch.bool)))

    def test_nothing_but_padding_is_finite(self) -> None:
        assert SinePositionEncoding(16)(torch.ones(1, 2, 2, dtype=torch.bool)).isfinite().all()


class TestMultiHeadAttention:
    @pytest.mark.parametrize("same", [True, False], ids=["self", "cross"])
    @pytest.mark.parametrize("training", [True, False])
    def test_equals_torchs(self, same: bool, training: bool) -> None:
        torch.manual_seed(0)
        attention = MultiHeadAttention(16, 4)
        reference = nn.MultiheadAttention(16, 4, batch_first=True)
        reference.load_state_dict(attention.state_dict())
        attention.train(training), reference.train(training)
        query = torch.randn(2, 5, 16)
        key = query if same else torch.randn(2, 7, 16)
        value = torch.randn(2, key.shape[1], 16)
        padding_mask = torch.zeros(2, key.shape[1], dtype=torch.bool)
        padding_mask[1, 3:] = True
        expected, _ = reference(query, key, value, key_padding_mask=padding_mask)
        torch.testing.assert_close(attention(query, key, value, additive_mask(padding_mask)), expected)

    def test_with_dropout_equals_without_on_average(self) -> None:
        torch.manual_seed(0)
        attention = MultiHeadAttention(16, 4, dropout=0.1)
        x = torch.randn(1, 6, 16)
        padding_mask = torch.tensor([[False] * 4 + [True] * 2])
        many = attention(*[x.expand(4000, -1, -1)] * 3, additive_mask(padding_mask.expand(4000, -1)))
        expected = attention.eval()(x, x, x, additive_mask(padding_mask))
        torch.testing.assert_close(many.mean(0, keepdim=True), expected, atol=0.02, rtol=0)
        assert many.std(0).max() > 0.05

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_nothing_but_padding_is_finite(self, training: bool, dtype: torch.dtype) -> None:
        attention = MultiHeadAttention(16, 4, dropout=0.1).train(training).to(dtype)
        x = torch.randn(1, 6, 16, dtype=dtype)
        assert attention(x, x, x, additive_mask(torch.ones(1, 6, dtype=torch.bool))).isfinite().all()

    def test_no_padding_needs_no_mask(self) -> None:
        assert additive_mask(torch.zeros(2, 3, dtype=torch.bool)) is None


class TestDropout:
    def test_drops_the_asked_part_and_keeps_the_mean(self) -> None:
        torch.manual_seed(0)
        out = dropout(torch.ones(100_001), 0.1)
        assert out.shape == (100_001,)
        assert abs((out == 0).float().mean().item() - 0.1) < 0.005
        assert abs(out.mean().item() - 1) < 0.005
        assert out.unique().numel() == 2

    def test_every_lane_of_a_draw_is_fair(self) -> None:
        torch.manual_seed(0)
        dropped = (dropout(torch.ones(50_000, 4), 0.3) == 0).float()
        torch.testing.assert_close(dropped.mean(0), torch.full((4,), 0.3), atol=0.01, rtol=0)
        assert torch.corrcoef(dropped.T).fill_diagonal_(0).abs().max() < 0.02

    def test_gradient_passes_where_the_value_did(self) -> None:
        x = torch.ones(1000, requires_grad=True)
        out = dropout(x, 0.5)
        out.sum().backward()
        torch.testing.assert_close(x.grad, out.detach())

    def test_same_seed_same_mask(self) -> None:
        outs = []
        for _ in range(2):
            torch.manual_seed(3)
            outs.append(dropout(torch.ones(999), 0.1))
        assert torch.equal(*outs)

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_extremes(self, p: float) -> None:
        torch.testing.assert_close(dropout(torch.ones(64), p), torch.full((64,), 1.0 - p))

    def test_empty_input(self) -> None:
        assert dropout(torch.ones(0, 3), 0.1).shape == (0, 3)

    def test_off_in_evaluation(self) -> None:
        x = torch.randn(100)
        assert Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalizer_zeroes_padding_and_gives_the_asked_layout(channels_last: bool) -> None:
    images = torch.full((1, 3, 4, 6), 255, dtype=torch.uint8)
    padding_mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    padding_mask[:, :, 5:] = True
    normalizer = ImageNormalizer(channels_last=channels_last)
    out = normalizer(images, padding_mask)
    assert (out[..., 5:] == 0).all()
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(out[0, :, 0, 0], expected)
    assert out.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert out.is_contiguous() != channels_last
    assert not normalizer.state_dict()


def test_mlp_has_relu_between_its_layers_only() -> None:
    mlp = MLP(3, 5, 2)
    x = torch.randn(4, 3)
    first, second = mlp.layers
    torch.testing.assert_close(mlp(x), second(F.relu(first(x))))


def _random_batch_norm() -> tuple[FrozenBatchNorm2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    reference = nn.BatchNorm2d(5)
    for value in (reference.weight.data, reference.bias.data, reference.running_mean):
        value.normal_()
    reference.running_var.uniform_(0.5, 2)
    norm = FrozenBatchNorm2d(5)
    norm.load_state_dict(reference.state_dict())
    return norm, reference


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tokens_give_batch_norm_the_right_gradient(size: int, memory_format: torch.memory_format) -> None:
    """Also for a batch of one, whose gradient CPU kernels misread as it comes from the tokens."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16)
    feature_map = torch.randn(size, 16, 3, 2).contiguous(memory_format=memory_format)
    weights = torch.randn(size * 6, 16)
    projection = nn.Linear(16, 16)
    cells = tokens_of(norm(feature_map))
    assert torch.equal(cells[0, 3], norm(feature_map)[0, :, 1, 1])
    (projection(cells).flatten(0, 1) * weights).sum().backward()
    torch.testing.assert_close(norm.bias.grad, (weights @ projection.weight).sum(0))


def test_cells_know_their_row_and_column() -> None:
    encoding = cell_position_encoding((2, 3), 8, device=torch.device("cpu")).view(2, 3, 8)
    rows, columns = encoding[..., :4], encoding[..., 4:]
    assert torch.equal(rows, rows[:, :1].expand_as(rows)) and torch.equal(columns, columns[:1].expand_as(columns))
    expected = torch.tensor([math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)])
    torch.testing.assert_close(columns[0, 2], expected)
    assert torch.equal(rows[0, 0], torch.tensor([0.0, 0, 1, 1]))


@torch.no_grad()
@pytest.mark.parametrize("norm_type", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_a_fused_convolution_does_what_it_and_its_norm_do(norm_type: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = ConvNorm(4, 6, 3, groups=2, norm=norm_type).eval()
    for value, (low, high) in zip(
        (layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var),
        ((0.5, 1.5), (-1, 1), (-1, 1), (0.5, 2)),
        strict=True,
    ):
        value.uniform_(low, high)
    x = torch.randn(2, 4, 5, 5)
    weight, bias = layer.fused()
    torch.testing.assert_close(F.conv2d(x, weight, bias, padding=1, groups=2), layer(x), atol=1e-5, rtol=1e-5)


def test_deformable_attention_without_queries_and_around_a_box() -> None:
    attention = MultiScaleDeformableAttention(16, 2, num_points=(2, 1))
    memory, shapes = torch.randn(1, 4 * 4 + 2 * 2, 16), [(4, 4), (2, 2)]
    assert attention(torch.zeros(1, 0, 16), torch.zeros(1, 0, 4), memory, shapes).shape == (1, 0, 16)
    # With its first weights it heeds all points alike: a box of no size reads the maps at its centre.
    centre = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])
    read = attention(torch.randn(1, 1, 16), centre, memory, shapes)
    value = attention.value_proj(memory)[0]
    fine, coarse = value[:16].view(4, 4, 16)[1:3, 1:3].mean((0, 1)), value[16:].mean(0)
    torch.testing.assert_close(read[0, 0], attention.output_proj((2 * fine + coarse) / 3), atol=1e-5, rtol=1e-5)
