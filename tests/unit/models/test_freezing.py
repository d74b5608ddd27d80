"""Freezing by part: weights and statistics stay, names are checked, something remains to be trained."""

from collections.abc import Sequence

import pytest
import torch

from detronome.config.schema import DetrConfig, NanoConfig
from detronome.errors import ConfigError
from detronome.models.build import build_model
from detronome.models.detector import Detector

CLASSIC = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    backbone_norm="trainable",
    frozen_stages=0,
    hidden_dim=16,
    num_heads=2,
    ffn_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_queries=5,
    dropout=0.5,
)
SMALL = NanoConfig(
    widths=(16, 16, 32), depths=(1, 1, 1), hidden_dim=16, num_heads=2, num_points=2, ffn_dim=16, num_queries=5
)


def classic() -> Detector:
    torch.manual_seed(0)
    return build_model(CLASSIC, 3)


def step(model: Detector) -> None:
    """Move every trained weight, in training mode."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    output = model(images, torch.zeros(2, 64, 64, dtype=torch.bool))
    parts = (output, *output.aux_outputs, *((output.enc_outputs,) if output.enc_outputs else ()))
    sum(part.pred_logits.sigmoid().sum() + part.pred_boxes.square().sum() for part in parts).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "parts", [[], ["backbone"], ["backbone", "transformer.encoder"], ["transformer.decoder.layers.0"]]
)
def test_frozen_parts_stay_and_the_others_learn(parts: Sequence[str]) -> None:
    model = classic()
    model.freeze(parts)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(f"{part}.") for name in changed for part in parts)
    assert "bbox_embed.layers.0.weight" in changed
    # Statistics of BatchNorm move where the backbone is not frozen.
    assert ("backbone.0.body.bn1.running_mean" in changed) == ("backbone" not in parts)


def test_statistics_of_a_learnt_backbone_stay_too() -> None:
    torch.manual_seed(0)
    model = build_model(SMALL, 3)
    model.freeze(["backbone"])
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    assert any("running_mean" in name for name in before)
    step(model)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_a_copy_keeps_what_is_frozen() -> None:
    from copy import deepcopy

    model = classic()
    model.freeze(["backbone"])
    copy = deepcopy(model).eval().train()
    assert not copy.get_submodule("backbone.0").training and copy.transformer.training


@pytest.mark.parametrize(
    ("part", "fix"),
    [
        ("backbon", "did you mean 'backbone'?"),
        ("transformer.encoderr", "did you mean 'transformer.encoder'?"),
        ("encoder", "did you mean 'transformer.encoder'?"),
        ("", "known names:"),
        ("xyz", "known names: backbone, bbox_embed, class_embed, input_proj, normalizer, query_embed, transformer"),
    ],
)
def test_a_typo_gets_the_nearest_name(part: str, fix: str) -> None:
    with pytest.raises(ConfigError, match="no part") as caught:
        classic().freeze([part])
    assert caught.value.problems[0].where == "train.freeze"
    assert fix in caught.value.problems[0].fix


def test_something_must_be_left_to_train() -> None:
    model = classic()
    with pytest.raises(ConfigError, match="nothing is left to train"):
        model.freeze([name for name, _ in model.named_children()])
