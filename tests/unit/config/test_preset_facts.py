"""What is said of presets is true: their networks are built and counted again, on tensors without data."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from detronome.config.preset_facts import PHOTO_HW, PRESET_FACTS
from detronome.config.presets import PRESETS
from detronome.config.schema import NanoConfig
from detronome.data.augment.params import evaluation_params
from detronome.data.build import augment_policy
from detronome.models.build import build_model
from detronome.tempo.memory.stand_in import StandIn


def counted(name: str, num_classes: int) -> dict[str, object]:
    config = PRESETS[name]()
    # The number of queries changes neither parameters nor, to the digits shown, the work.
    model_config = (
        replace(config.model, num_queries=25)
        if isinstance(config.model, NanoConfig)
        else replace(config.model, backbone_weights="none")
    )
    image_hw = evaluation_params(augment_policy(config.augment), PHOTO_HW).final_hw
    with torch.device("meta"):
        model = build_model(model_config, num_classes).eval().requires_grad_(False)
        images = torch.empty(1, 3, *image_hw, dtype=torch.uint8)
        padding_mask = torch.zeros(1, *image_hw, dtype=torch.bool)
    with StandIn("cpu"), FlopCounterMode(display=False) as work:
        _ = model(images, padding_mask).pred_masks
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflops": round(work.get_total_flops() / 1e9, 1),
        "image_hw": tuple(image_hw),
    }


def test_every_preset_has_its_facts_and_nothing_else_has() -> None:
    assert PRESET_FACTS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_size_and_work_are_those_of_the_network(name: str) -> None:
    facts = PRESET_FACTS.get(name)
    again = counted(name, facts.num_classes if facts else 80)
    assert facts is not None, f"the row is to say: {again}"
    if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:
        del again["gflops"]  # torch 2.11 counts no attention on a CPU
    assert {key: asdict(facts)[key] for key in again} == again


def test_the_counter_counts_multiply_and_add_as_two() -> None:
    with torch.device("meta"):
        layer, x = torch.nn.Conv2d(3, 8, 3, padding=1), torch.empty(1, 3, 10, 20)
    with FlopCounterMode(display=False) as work:
        layer(x)
    assert work.get_total_flops() == 2 * (3 * 3 * 3) * 8 * 10 * 20


@pytest.mark.parametrize("name", PRESETS)
def test_docstrings_say_the_same(name: str) -> None:
    facts, said = PRESET_FACTS[name], " ".join((PRESETS[name].__doc__ or "").split())
    assert f"{facts.num_parameters / 1e6:.1f} M parameters, {facts.gflops:.1f} GFLOPs" in said
    if facts.PQ is not None:
        assert f"published PQ {facts.PQ:g}, box AP {facts.AP:g}" in said
    elif facts.AP is not None:
        assert f"published {facts.AP} AP" in said
    else:
        assert "published" not in said or "nothing is published" in said


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_published_has_a_source(name: str) -> None:
    facts = PRESET_FACTS[name]
    assert bool(facts.source) == (facts.AP is not None or facts.PQ is not None)
