"""Which settings of a run may change when it goes on, and what a refusal says."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from detronome.config.convert import apply_overrides, to_dict
from detronome.config.presets import PRESETS, preset
from detronome.config.schema import DetrConfig, NanoConfig, RunConfig
from detronome.engine import resume
from detronome.engine.resume import judge, reconcile, resume_command
from detronome.errors import ConfigError

RUN = Path("runs/nano")
RESOLVED: dict[str, Any] = {
    "model.num_queries": 25,
    "data.root": "/data",
    "data.workers": 2,
    "data.buckets": [],
    "batch.micro_batch_size": 8,
    "train.epochs": 50,
    "train.device": "cuda",
    "train.precision": "bf16",
    "train.eval_epochs": 2,
    "eval.batch_size": 8,
}


def held(**others: Any) -> RunConfig:
    return apply_overrides(preset("nano"), {**RESOLVED, **others})


def all_keys() -> list[str]:
    keys = []
    for section in dataclasses.fields(RunConfig):
        records = [DetrConfig, NanoConfig] if section.name == "model" else [type(getattr(RunConfig(), section.name))]
        for record in records:
            if not dataclasses.is_dataclass(record):
                keys.append(section.name)
                continue
            keys += [f"{section.name}.{field.name}" for field in dataclasses.fields(record)]
    return sorted(set(keys))


def test_nothing_changed_is_no_change() -> None:
    assert reconcile(held(), held(), run=RUN) == (held(), [])


@pytest.mark.parametrize("key", all_keys())
def test_every_setting_has_a_judgement(key: str) -> None:
    judgement, cost = judge(key, held(), held())
    assert judgement in ("free", "inexact", "fixed")
    assert bool(cost) == (judgement != "free")


def test_no_setting_is_judged_twice_or_has_long_gone() -> None:
    tables = [set(resume._FREE), set(resume._INEXACT), set(resume._FIXED)]
    judged = [key for table in tables for key in table]
    assert len(judged) == len(set(judged))
    assert set(judged) <= set(all_keys())


def test_a_setting_that_nobody_has_judged_is_our_bug() -> None:
    with pytest.raises(KeyError):
        judge("train.unheard_of", held(), held())


def test_auto_takes_the_value_of_the_checkpoint() -> None:
    """The command of the first start asks for `auto`; the checkpoint has what was made of it."""
    asked = apply_overrides(preset("nano"), {"data.root": "/data"})
    assert reconcile(held(), asked, run=RUN) == (held(), [])


def test_free_settings_change_and_cost_nothing() -> None:
    asked = held(**{"data.workers": 7, "data.bad_image_budget": 0.5, "train.checkpoint_minutes": 1.0})
    config, changes = reconcile(held(), asked, run=RUN)
    assert config == asked
    assert [(change.key, change.judgement) for change in changes] == [
        ("data.workers", "free"),
        ("data.bad_image_budget", "free"),
        ("train.checkpoint_minutes", "free"),
    ]
    assert changes[0].told == "7 (was 2 until now)"


def test_inexact_settings_change_and_say_so() -> None:
    config, changes = reconcile(held(), held(**{"train.device": "cpu", "data.root": "/elsewhere"}), run=RUN)
    assert config.train.device == "cpu" and config.data.root == "/elsewhere"
    assert {change.judgement for change in changes} == {"inexact"}
    assert all("no longer bit for bit" in change.told for change in changes)


def test_all_that_is_fixed_is_refused_at_once_each_with_values_cost_and_fix() -> None:
    asked = held(
        **{"optim.lr": 0.1, "augment.sizes": [96, 128], "train.seed": 7, "data.workers": 0, "data.root": "/a b"}
    )
    with pytest.raises(ConfigError) as error:
        reconcile(held(), asked, run=Path("runs/my run"))
    assert [problem.what.partition(" ")[0] for problem in error.value.problems] == [
        "augment.sizes",
        "optim.lr",
        "train.seed",
    ]
    rate = error.value.problems[1]
    assert rate.what == (
        "optim.lr is 0.002 in the checkpoint, and 0.1 is asked for: weights and moments come from other updates"
    )
    assert rate.where == "runs/my run"
    assert "detronome train --resume 'runs/my run'" in rate.fix
    assert rate.fix.endswith("detronome train '/a b' --model 'runs/my run' --set optim.lr=0.1")
    assert error.value.problems[0].fix.endswith("--set 'augment.sizes=[96, 128]'")


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"nano"}))
def test_another_preset_is_one_cause_and_not_fifty_symptoms(name: str) -> None:
    asked = apply_overrides(preset(name), {"data.root": "/data", "optim.weight_decay": 0.123})
    with pytest.raises(ConfigError) as error:
        reconcile(held(), asked, run=RUN)
    assert [problem.what.partition(" ")[0] for problem in error.value.problems] == ["preset", "optim.weight_decay"]


def test_another_family_is_told_alone() -> None:
    asked = dataclasses.replace(held(), model=DetrConfig())
    with pytest.raises(ConfigError) as error:
        reconcile(held(), asked, run=RUN)
    (problem,) = error.value.problems
    assert problem.what.startswith("model.family is nano in the checkpoint, and detr is asked for")
    assert "--set" not in problem.fix


@pytest.mark.parametrize("kind", ["cosine", "one_cycle"])
def test_the_length_is_fixed_where_the_schedule_depends_on_it(kind: str) -> None:
    before = held(**{"schedule.kind": kind})
    with pytest.raises(ConfigError, match=r"spread over the whole length and .*quality_ramp"):
        reconcile(before, apply_overrides(before, {"train.epochs": 60}), run=RUN)


def test_a_longer_run_is_possible_where_nothing_depends_on_the_length() -> None:
    classic = apply_overrides(preset("detr-r50"), {"train.epochs": 300})
    longer = apply_overrides(classic, {"train.epochs": 500})
    config, (change,) = reconcile(classic, longer, run=RUN)
    assert config.train.epochs == 500 and change.judgement == "inexact"
    with pytest.raises(ConfigError, match="past its new end"):
        reconcile(longer, classic, run=RUN)


def test_the_weights_that_a_run_began_with_are_not_needed_again() -> None:
    before = apply_overrides(preset("detr-r50"), {"model.backbone_weights": "/gone.pth"})
    _, changes = reconcile(before, preset("detr-r50"), run=RUN)
    assert [change.judgement for change in changes] == ["free"]


def test_every_single_change_is_accepted_or_refused_by_name() -> None:
    """Whatever the setting: it changes, or the error names it."""
    base = held()
    for section, values in to_dict(base).items():
        for name, value in values.items() if isinstance(values, dict) else ():
            other = {bool: not value, int: 3, float: 0.25}.get(type(value))
            if other is None or other == value:
                continue
            key = f"{section}.{name}"
            asked = apply_overrides(base, {key: other})
            if judge(key, base, asked)[0] == "fixed":
                with pytest.raises(ConfigError, match=key):
                    reconcile(base, asked, run=RUN)
            else:
                assert [change.key for change in reconcile(base, asked, run=RUN)[1]] == [key]


@pytest.mark.parametrize("name", ["run", "my run", "a'b", "$HOME", "-x", 'q"q', "ü ✓", ":smile:", "a;b", "[bold]"])
def test_the_command_to_resume_can_be_pasted_into_a_shell(name: str) -> None:
    words = shlex.split(resume_command(Path(name)))
    assert words[:3] == ["detronome", "train", "--resume"] and Path(words[3]) == Path(name)
    assert not words[3].startswith("-")
