"""Classic DETR as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detronome.config.schema import DetrConfig
from detronome.models.build import build_model
from detronome.models.detr.model import DETR
from detronome.types import ModelOutput

TINY = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    hidden_dim=32,
    num_heads=4,
    ffn_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=3,
    num_queries=9,
)


@pytest.fixture
def model() -> DETR:
    torch.manual_seed(0)
    return build_model(TINY, 7)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("num_encoder_layers", [0, 2])
def test_shapes_in_training(pre_norm: bool, num_encoder_layers: int) -> None:
    model = build_model(replace(TINY, pre_norm=pre_norm, num_encoder_layers=num_encoder_layers), 7).train()
    output = model(*_batch(3, 64, 96))
    assert len(output.aux_outputs) == 2
    for layer in (*output.aux_outputs, output):
        assert layer.pred_logits.shape == (3, 9, 8)
        assert layer.pred_boxes.shape == (3, 9, 4)
        assert layer.pred_boxes.min() >= 0 and layer.pred_boxes.max() <= 1


def test_evaluation_gives_the_last_layer_of_training(model: DETR) -> None:
    model = build_model(replace(TINY, dropout=0.0), 7)
    batch = _batch(2, 64, 96)
    trained, evaluated = model.train()(*batch), model.eval()(*batch)
    assert not evaluated.aux_outputs
    torch.testing.assert_close(evaluated.pred_logits, trained.pred_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluated.pred_boxes, trained.pred_boxes, atol=1e-5, rtol=1e-5)


def test_aux_outputs_are_ordered_first_to_last() -> None:
    """A model cut to its first decoder layer gives the first auxiliary output."""
    model = build_model(replace(TINY, dropout=0.0), 7).train()
    batch = _batch(1, 64, 64)
    output = model(*batch)
    model.transformer.decoder.layers = model.transformer.decoder.layers[:1]
    torch.testing.assert_close(model(*batch).pred_boxes, output.aux_outputs[0].pred_boxes)


def test_a_batch_of_equal_sizes_equals_its_images_alone(model: DETR) -> None:
    images, padding_mask = _batch(3, 64, 96)
    model.eval()
    together = model(images, padding_mask)
    for i in range(3):
        _assert_same(together, model(images[i : i + 1], padding_mask[i : i + 1]), image=i)


def test_padding_is_not_attended_to(model: DETR) -> None:
    """Padding by whole cells of the feature map changes only what convolutions see at the border: with features that
    ignore their surroundings nothing changes at all."""
    torch.manual_seed(0)
    transformer = model.eval().transformer
    encode = model.backbone[1]
    small = torch.zeros(1, 2, 3, dtype=torch.bool)
    padded = torch.ones(1, 4, 5, dtype=torch.bool)
    padded[:, :2, :3] = False
    features = torch.randn(1, 4, 5, 32)
    expected, _ = transformer(
        features[:, :2, :3].flatten(1, 2), small.flatten(1), encode(small).flatten(1, 2), model.query_embed.weight
    )
    decoded, _ = transformer(
        features.flatten(1, 2), padded.flatten(1), encode(padded).flatten(1, 2), model.query_embed.weight
    )
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


def test_what_lies_under_the_padding_does_not_matter(model: DETR) -> None:
    images, padding_mask = _batch(2, 64, 96)
    padding_mask[1, :, 70:] = True
    model.eval()
    expected = model(images, padding_mask)
    images[1, :, :, 70:] = 77
    _assert_same(expected, model(images, padding_mask))


def test_gradient_reaches_every_trainable_parameter_and_no_other() -> None:
    torch.manual_seed(0)
    model = build_model(replace(TINY, dropout=0.0), 7).train()
    output = model(*_batch(2, 64, 96))
    layers = (*output.aux_outputs, output)
    sum(layer.pred_logits.square().mean() + layer.pred_boxes.square().mean() for layer in layers).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("backbone.0.body.conv1", "backbone.0.body.layer1")):
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # The first decoder layer starts from zeros: its self-attention sees no values but its own zero bias.
            if not name.startswith(("transformer.decoder.layers.0.self_attn.", "transformer.decoder.layers.0.norm1.")):
                assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_autocast_keeps_features_narrow_and_outputs_wide(model: DETR) -> None:
    dtypes = []
    model.input_proj.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(*_batch(2, 64, 96))
    assert dtypes == [torch.bfloat16]
    assert output.pred_logits.dtype == output.pred_boxes.dtype == torch.float32
    output.pred_boxes.sum().backward()


def test_same_seed_same_training_output(model: DETR) -> None:
    batch = _batch(2, 64, 96)
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(model.train()(*batch).pred_logits)
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], model(*batch).pred_logits), "dropout draws anew each time"


def test_evaluation_has_no_randomness(model: DETR) -> None:
    batch = _batch(2, 64, 96)
    model.eval()
    assert torch.equal(model(*batch).pred_logits, model(*batch).pred_logits)


def test_targets_change_nothing(model: DETR) -> None:
    batch = _batch(1, 64, 64)
    model.eval()
    assert torch.equal(model(*batch, []).pred_logits, model(*batch).pred_logits)


def test_an_image_of_nothing_but_padding_is_finite(model: DETR) -> None:
    images, padding_mask = _batch(2, 64, 64)
    padding_mask[1] = True
    for mode in (True, False):
        output = model.train(mode)(images, padding_mask)
        assert output.pred_logits.isfinite().all() and output.pred_boxes.isfinite().all()


def _batch(size: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8)
    return images, torch.zeros(size, height, width, dtype=torch.bool)


def _assert_same(a: ModelOutput, b: ModelOutput, *, image: int | None = None) -> None:
    rows = slice(None) if image is None else slice(image, image + 1)
    torch.testing.assert_close(a.pred_logits[rows], b.pred_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.pred_boxes[rows], b.pred_boxes, atol=1e-5, rtol=1e-5)
