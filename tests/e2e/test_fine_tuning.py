"""Fine-tuning a run: on other classes, and with parts that stay as they are."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import detronome as dt
from detronome.engine.events import Event, RunStarted, StepLogged
from detronome.report.run_log import read_run_log

Settings = dict[str, Any]
STILL: Settings = {"optim.lr": 1e-30, "optim.backbone_lr": 1e-30, "train.ema_decay": 0.0}
"""Weights hardly move."""


def weights_of(run: Path) -> dict[str, Tensor]:
    return dt.load(run / "checkpoints" / "last", device="cpu").checkpoint.model


def with_categories(data: Path, copy: Path, categories: list[dict[str, Any]]) -> Path:
    shutil.copytree(data, copy)
    for file in (copy / "annotations").iterdir():
        file.write_text(json.dumps({**json.loads(file.read_text()), "categories": categories}))
    return copy


def test_on_other_classes_the_head_alone_begins_anew_and_it_is_told(
    tiny_run: Path, blocks: Path, tmp_path: Path
) -> None:
    names = ("grün", "red", "blue")
    categories = [{"id": id_, "name": name} for id_, name in zip((3, 7, 9), names, strict=True)]
    data = with_categories(blocks, tmp_path / "data", categories)
    events: list[Event] = []
    run = dt.train(data, model=tiny_run, epochs=1, out=tmp_path / "run", settings=STILL, observers=[events.append])
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    told = started.resolved["classes"]
    assert "the classification head begins anew, and nothing else" in told
    assert "new to the weights, which know 2: grün" in told and "kept by name: red, blue" in told
    assert read_run_log(run.folder / "log.jsonl")[0]["resolved"]["classes"] == told

    assert run.model.categories.names == names
    assert dt.evaluate(run.model, data).per_class_ap.keys() == set(names)
    before, after = weights_of(tiny_run), weights_of(run.folder)
    assert before.keys() == after.keys()
    head = {name for name in before if before[name].shape != after[name].shape}
    assert head and all("class" in name or "label" in name for name in head)
    for name in head:  # red and blue keep their rows, under their new labels
        torch.testing.assert_close(after[name][1:], before[name], atol=1e-20, rtol=0)
    for name in before.keys() - head:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], before[name], atol=1e-20, rtol=0, msg=name)


def test_on_the_same_classes_nothing_is_told(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    dt.train(blocks, model=tiny_run, epochs=1, out=tmp_path / "run", settings=STILL, observers=[events.append])
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    assert "classes" not in started.resolved


def test_a_fine_tuned_model_is_resumed_with_its_own_classes(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    data = with_categories(blocks, tmp_path / "data", [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}])

    def stop(event: Event) -> None:
        if isinstance(event, StepLogged) and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    cut = dt.train(data, model=tiny_run, epochs=2, out=tmp_path / "cut", observers=[stop])
    assert cut.reason == "interrupted"
    assert dt.resume(cut.folder).model.categories.names == ("a", "b")


def test_frozen_parts_stay_as_they_are_over_a_resume(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    settings = {"train.freeze": ["backbone"]}
    whole = dt.train(
        blocks, model=tiny_run, epochs=2, out=tmp_path / "whole", settings=settings, observers=[events.append]
    )

    def stop(event: Event) -> None:
        if isinstance(event, StepLogged) and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    cut = dt.train(blocks, model=tiny_run, epochs=2, out=tmp_path / "cut", settings=settings, observers=[stop])
    assert cut.reason == "interrupted"
    with pytest.raises(dt.ConfigError, match="other parts have learnt"):
        dt.resume(cut.folder, settings={"train.freeze": []})
    assert dt.resume(cut.folder).reason == "finished"

    begun, ended, resumed = (weights_of(folder) for folder in (tiny_run, whole.folder, cut.folder))
    assert all(torch.equal(ended[name], resumed[name]) for name in ended)
    backbone = {name for name in begun if name.startswith("backbone.")}
    assert any("running_mean" in name for name in backbone)
    assert all(torch.equal(begun[name], ended[name]) for name in backbone)
    assert not all(torch.equal(begun[name], ended[name]) for name in begun.keys() - backbone)

    (started,) = [event for event in events if isinstance(event, RunStarted)]
    frozen = sum(p.numel() for p in whole.model.detector.backbone.parameters())
    assert started.num_parameters - started.num_trainable_parameters == frozen > 0


def test_a_part_that_is_not_there_is_named(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(dt.ConfigError, match="no part 'bakbone' to freeze") as caught:
        dt.train(blocks, model=tiny_run, epochs=1, out=tmp_path / "run", settings={"train.freeze": ["bakbone"]})
    assert "did you mean 'backbone'?" in str(caught.value)


def test_settings_of_another_model_and_other_classes_are_an_error_of_the_user(
    tiny_run: Path, blocks: Path, tmp_path: Path
) -> None:
    names = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]
    data = with_categories(blocks, tmp_path / "data", names)
    with pytest.raises(dt.DetronomeError, match="do not fit the model that the settings describe"):
        dt.train(data, model=tiny_run, epochs=1, out=tmp_path / "wide", settings={"model.hidden_dim": 64})
    with pytest.raises(dt.DetronomeError, match=r"settings describe: .* and \d+ more\n  where: model") as caught:
        dt.train(blocks, model=tiny_run, epochs=1, out=tmp_path / "wide", settings={"model.hidden_dim": 64})
    assert len(str(caught.value)) < 1_000


def test_a_new_head_is_not_frozen(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    """What is random would stay so, and the run would learn nothing."""
    head = next(name for name in weights_of(tiny_run) if "class" in name).partition(".")[0]
    names = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]
    data = with_categories(blocks, tmp_path / "data", names)
    with pytest.raises(dt.ConfigError, match=f"with {head} frozen the model cannot learn them"):
        dt.train(data, model=tiny_run, epochs=1, out=tmp_path / "frozen", settings={"train.freeze": [head]})
