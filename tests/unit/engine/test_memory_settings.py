"""What only saves memory or time, on real trainers: checkpointed activations and the memory layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.oom_injection import out_of_memory
from tests.unit.engine.trainers import CLASSIC, Crash, crash_when, differing, learnt, tiny_trainer

from detronome.engine.checkpoint import load_last_good

NANO: dict[str, Any] = {"train.device": "cpu", "data.workers": 0, "augment.sizes": [64], "augment.max_size": 96}


@pytest.mark.parametrize(("model", "settings"), [("nano", NANO), ("detr-r18", dict(CLASSIC))], ids=["nano", "detr"])
def test_a_run_with_checkpointed_activations_is_the_run_bit_for_bit(
    model: str, settings: dict[str, Any], blocks: Path, tmp_path: Path
) -> None:
    ends = []
    for part in ("none", "all"):
        changed = {**settings, "train.checkpoint_activations": part}
        trainer = tiny_trainer(blocks, tmp_path / part, changed, model=model, validate=False)
        trainer.fit()
        ends.append(learnt(trainer))
    assert differing(*ends) == []


def test_memory_that_runs_out_in_backward_splits_the_step_with_checkpointed_activations(
    blocks: Path, tmp_path: Path
) -> None:
    settings = {**CLASSIC, "model.frozen_stages": 5, "model.dropout": 0.0, "train.checkpoint_activations": "all"}
    whole = tiny_trainer(blocks, tmp_path / "whole", settings, model="detr-r18", validate=False)
    whole.fit()
    split = tiny_trainer(blocks, tmp_path / "split", settings, model="detr-r18", validate=False)
    with out_of_memory(split.model, max_images=2, during="backward"):
        split.fit()
    assert split.training_step.sizes.state()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(split.model.state_dict()[name], value, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_resumed_run_keeps_the_layout_and_is_the_run_that_never_stopped(
    channels_last: bool, blocks: Path, tmp_path: Path
) -> None:
    settings = {**CLASSIC, "train.channels_last": channels_last}
    whole = tiny_trainer(blocks, tmp_path / "whole", settings, model="detr-r18", epochs=2)
    whole.fit()
    is_late = crash_when(lambda event: event.step == 9)
    with pytest.raises(Crash):
        tiny_trainer(blocks, tmp_path / "parts", settings, model="detr-r18", epochs=2, observers=[is_late]).fit()
    checkpoint, _ = load_last_good(tmp_path / "parts" / "checkpoints")
    again = tiny_trainer(blocks, tmp_path / "parts", settings, model="detr-r18", epochs=2, resume_from=checkpoint)
    weight = again.model.get_parameter("backbone.0.body.layer4.0.conv1.weight")
    assert weight.is_contiguous() != channels_last
    moment = again.training_step.optimizer.state[weight]["exp_avg"]
    assert moment.stride() == weight.stride()
    again.fit()
    assert differing(learnt(whole), learnt(again)) == []
