import errno
import json
from pathlib import Path

import pytest
import torch

from detronome.engine import checkpoint as module
from detronome.engine.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    TrainingState,
    find_checkpoint,
    load_checkpoint,
)
from detronome.errors import CheckpointError
from detronome.types import Categories

STATE = TrainingState(
    step=0,
    training_s=1.25,
    num_skipped=3,
    scaler={"scale": 2.0},
    best={"value": 0.1, "step": 7, "num_without_gain": 0, "patience_value": None},
    best_metrics={"AP": 0.1 + 0.2, "AP_large": None},
    data_fingerprint="abc",
)


def checkpoint_of(step: int, *, with_training: bool = True) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(4, 3, generator=generator), "a.count": torch.tensor(step)}
    return Checkpoint(
        config={"preset": "nano", "model": {"widths": [8, 16]}, "optim": {"lr": 0.1}},
        categories=Categories((3, 7), ("rød", "blue")),
        state=TrainingState(**{**vars(STATE), "step": step}),
        model=weights,
        training={name: value + 1 for name, value in weights.items()} if with_training else None,
        optimizer={"a.weight.exp_avg": torch.randn(4, 3, generator=generator), "a.weight.step": torch.tensor(5.0)},
    )


def assert_same(read: Checkpoint, written: Checkpoint) -> None:
    assert (read.config, read.categories, read.state) == (written.config, written.categories, written.state)
    for part in ("model", "training", "optimizer"):
        ours, theirs = getattr(written, part), getattr(read, part)
        assert (ours is None) == (theirs is None)
        assert (ours or {}).keys() == (theirs or {}).keys()
        for name in ours or {}:
            assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize("with_training", [True, False])
def test_round_trip_bit_for_bit(tmp_path: Path, with_training: bool) -> None:
    written = checkpoint_of(12, with_training=with_training)
    path = CheckpointFolder(tmp_path).save(written, is_best=True)
    assert path.name == "step-00000012"
    assert_same(load_checkpoint(path, with_training=True), written)


def test_reading_for_prediction_leaves_the_rest_out(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint_of(12), is_best=True)
    (path / "optimizer.safetensors").unlink()
    read = load_checkpoint(path)
    assert read.training is None and read.optimizer is None


def test_before_the_first_update_there_is_no_optimiser_state(tmp_path: Path) -> None:
    written = Checkpoint(**{**vars(checkpoint_of(0)), "optimizer": {}})
    path = CheckpointFolder(tmp_path).save(written, is_best=False)
    assert load_checkpoint(path, with_training=True).optimizer == {}


def test_views_and_channels_last_are_written_as_their_values(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    written = Checkpoint(**{**vars(checkpoint_of(1)), "model": {"w": weight, "v": weight[1:2]}})
    read = load_checkpoint(CheckpointFolder(tmp_path).save(written, is_best=True))
    assert torch.equal(read.model["w"], weight) and torch.equal(read.model["v"], weight[1:2])


FILES = ["model.safetensors", "training.safetensors", "optimizer.safetensors"]


@pytest.mark.parametrize("name", [*FILES, "state.json"])
def test_a_flipped_bit_is_found_in_every_file(tmp_path: Path, name: str) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint_of(12), is_best=True)
    content = bytearray((path / name).read_bytes())
    position = content.index(b'"step": 12') + 9 if name == "state.json" else len(content) // 2
    content[position] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256") as error:
        load_checkpoint(path, with_training=True)
    assert str(path / name) in str(error.value)


@pytest.mark.parametrize("name", [*FILES, "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "empty"])
def test_damage_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint_of(12), is_best=True)
    if damage == "missing":
        (path / name).unlink()
    else:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, with_training=True)
    assert str(path / name) in str(error.value) and "fix:" in str(error.value)


def test_all_damaged_files_are_told_at_once(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint_of(12), is_best=True)
    (path / FILES[0]).unlink()
    (path / FILES[1]).write_bytes(b"")
    (path / FILES[2]).write_bytes((path / FILES[2]).read_bytes()[::-1])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, with_training=True)
    assert [Path(problem.where).name for problem in error.value.problems] == FILES


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"format_version": 1}', "not JSON"])
def test_a_record_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint_of(12), is_best=True)
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**record, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        load_checkpoint(path)


def test_only_last_and_best_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step, is_best in ((1, True), (2, False), (3, True), (4, False), (5, False)):
        folder.save(checkpoint_of(step), is_best=is_best)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last", "step-00000003", "step-00000005"]
    assert load_checkpoint(tmp_path / "best").state.step == 3
    assert load_checkpoint(tmp_path / "last").state.step == 5
    assert not (tmp_path / "last").readlink().is_absolute()


@pytest.mark.parametrize("failing_call", [1, 2, 3, "state.json", "rename"])
def test_a_full_disk_at_any_moment_leaves_the_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int | str
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint_of(1), is_best=True)
    folder.save(checkpoint_of(2), is_best=False)
    before = sorted(p.name for p in tmp_path.iterdir())
    full = OSError(errno.ENOSPC, "No space left on device")
    calls = 0
    original = module.save_file

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            path.write_bytes(b"half of it")
            raise full
        original(tensors, path)

    def refuse(*arguments: object, **options: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", save_file)
        if failing_call == "state.json":
            patch.setattr(Path, "write_text", refuse)
        if failing_call == "rename":
            patch.setattr("os.rename", refuse)
        with pytest.raises(CheckpointError, match="No space left") as error:
            folder.save(checkpoint_of(3), is_best=True)
    assert "step 3" in str(error.value) and "older checkpoints are intact" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert_same(load_checkpoint(tmp_path / "best", with_training=True), checkpoint_of(1))
    assert_same(load_checkpoint(tmp_path / "last", with_training=True), checkpoint_of(2))
    folder.save(checkpoint_of(3), is_best=True)
    assert load_checkpoint(tmp_path / "last").state.step == 3


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint_of(1), is_best=True)
    half = tmp_path / ".step-00000002-abc.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".last-123.tmp").symlink_to("step-00000002")
    folder.save(checkpoint_of(2), is_best=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last", "step-00000001", "step-00000002"]


def test_a_damaged_folder_of_the_same_step_is_written_again(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = folder.save(checkpoint_of(2), is_best=True)
    (path / "model.safetensors").write_bytes(b"")
    folder.save(checkpoint_of(2), is_best=True)
    assert_same(load_checkpoint(tmp_path / "last", with_training=True), checkpoint_of(2))


def test_find_checkpoint_takes_a_run_its_checkpoints_or_one_of_them(tmp_path: Path) -> None:
    run = tmp_path / "a run ü"
    folder = CheckpointFolder(run / "checkpoints")
    best = folder.save(checkpoint_of(1), is_best=True).resolve()
    last = folder.save(checkpoint_of(2), is_best=False).resolve()
    for path in (run, run / "checkpoints"):
        assert find_checkpoint(path) == best
        assert find_checkpoint(path, prefer="last") == last
    for path in (run / "checkpoints" / "last", last):
        assert find_checkpoint(path) == last
    assert find_checkpoint(run / "checkpoints" / "best", prefer="last") == best


def test_find_checkpoint_without_a_best_takes_the_last(tmp_path: Path) -> None:
    last = CheckpointFolder(tmp_path / "checkpoints").save(checkpoint_of(2), is_best=False)
    assert find_checkpoint(tmp_path) == last.resolve()


def test_find_checkpoint_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        find_checkpoint(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        find_checkpoint(tmp_path / "file")
