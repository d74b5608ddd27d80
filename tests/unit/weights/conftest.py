"""A small DETR whose weights the tests write in every form, and damage; makes the helpers here importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detronome.config.schema import DetrConfig
from detronome.models.build import build_model

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "download"))  # for the server that misbehaves

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


@pytest.fixture(scope="session")
def tiny_config() -> DetrConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, Tensor]:
    """Weights of a small classic DETR of 91 classes under the official keys; not to be written to."""
    torch.manual_seed(0)
    return build_model(TINY, 91).state_dict()
