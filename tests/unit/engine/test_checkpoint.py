import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engine.checkpoints import assert_same, checkpoint_of

from detronome.engine.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    find_checkpoint,
    load_checkpoint,
    load_last_good,
)
from detronome.errors import CheckpointError


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
    with pytest.raises(CheckpointError, match="format 99, this version reads 2"):
        load_checkpoint(path)


def test_only_last_and_best_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step, is_best in ((1, True), (2, False), (3, True), (4, False), (5, False)):
        folder.save(checkpoint_of(step), is_best=is_best)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last", "step-00000003", "step-00000005"]
    assert load_checkpoint(tmp_path / "best").state.step == 3
    assert load_checkpoint(tmp_path / "last").state.step == 5
    assert not (tmp_path / "last").readlink().is_absolute()


@settings(max_examples=50)
@given(
    keep_last=st.integers(1, 4),
    saves=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8),
)
def test_the_newest_few_and_the_best_are_kept_in_any_sequence(keep_last: int, saves: list[tuple[int, bool]]) -> None:
    with TemporaryDirectory() as name, patch("os.fsync"):
        folder = CheckpointFolder(Path(name), keep_last)
        written: list[Path] = []
        best: Path | None = None
        for step, is_best in saves:  # steps in any order and repeated: the run is rolled back now and then
            written.append(folder.save(checkpoint_of(step), is_best=is_best))
            best = written[-1] if is_best else best
            newest = dict.fromkeys(path.name for path in reversed(written))
            kept = set(list(newest)[:keep_last]) | ({best.name} if best else set())
            links = {"last", "best"} if best else {"last"}
            assert {path.name for path in Path(name).iterdir()} == kept | links
            assert find_checkpoint(Path(name), prefer="last") == written[-1].resolve()
            assert find_checkpoint(Path(name)) == (best or written[-1]).resolve()
            assert (Path(name) / "last").resolve() == written[-1].resolve()
        assert_same(load_checkpoint(written[-1], with_training=True), checkpoint_of(saves[-1][0]))


def test_the_newest_is_told_by_when_it_was_written_also_when_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=3)
    for step, clock in ((1, 500), (2, 300), (3, 400)):
        monkeypatch.setattr("time.time_ns", lambda clock=clock: clock)
        path = folder.save(checkpoint_of(step), is_best=False)
        assert find_checkpoint(tmp_path, prefer="last") == path.resolve()


def test_a_damaged_folder_is_not_counted_and_not_deleted(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2)
    one, two = (folder.save(checkpoint_of(step), is_best=False) for step in (1, 2))
    (two / "model.safetensors").write_bytes(b"")
    three = folder.save(checkpoint_of(3), is_best=False)
    assert sorted(tmp_path.glob("step-*")) == [one, two, three]
    four = folder.save(checkpoint_of(4), is_best=False)
    assert sorted(tmp_path.glob("step-*")) == [two, three, four]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: shutil.rmtree(path),
    "record gone": lambda path: (path / "state.json").unlink(),
    "record cut": lambda path: (path / "state.json").write_bytes((path / "state.json").read_bytes()[:100]),
    "file gone": lambda path: (path / "optimizer.safetensors").unlink(),
    "file cut": lambda path: (path / "model.safetensors").write_bytes(b"12"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_find_passes_over_a_damaged_newest_whatever_the_link_says(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=2)
    older, newest = (folder.save(checkpoint_of(step), is_best=False) for step in (1, 2))
    DAMAGES[damage](newest)
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "last"):
        assert find_checkpoint(path, prefer="last") == older.resolve()
        checkpoint, problems = load_last_good(path)
        assert_same(checkpoint, checkpoint_of(1))
        assert len(problems) == (damage not in ("gone", "record gone"))
        assert all(newest.name in problem.where for problem in problems)


def test_a_missing_link_is_no_loss(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    best, last = folder.save(checkpoint_of(1), is_best=True), folder.save(checkpoint_of(2), is_best=False)
    (tmp_path / "last").unlink()
    (tmp_path / "best").unlink()
    assert find_checkpoint(tmp_path / "best", prefer="last") == best.resolve()
    assert find_checkpoint(tmp_path / "last") == last.resolve()


def test_a_link_that_the_user_set_is_followed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2)
    chosen, _ = (folder.save(checkpoint_of(step), is_best=True) for step in (1, 2))
    (tmp_path / "best").unlink()
    (tmp_path / "best").symlink_to(chosen.name)
    assert find_checkpoint(tmp_path / "best") == chosen.resolve()


def test_resuming_falls_back_over_content_that_only_the_hash_tells(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=3)
    paths = [folder.save(checkpoint_of(step), is_best=False) for step in (1, 2, 3)]
    for path, name in ((paths[1], "model.safetensors"), (paths[2], "optimizer.safetensors")):
        content = bytearray((path / name).read_bytes())
        content[-1] ^= 1
        (path / name).write_bytes(content)
    checkpoint, problems = load_last_good(tmp_path)
    assert_same(checkpoint, checkpoint_of(1))
    assert [Path(problem.where).parent.name for problem in problems] == ["step-00000003", "step-00000002"]
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_last_good(paths[2])  # named itself: no substitute


def test_when_all_are_damaged_all_is_told(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2)
    for step in (1, 2):
        (folder.save(checkpoint_of(step), is_best=False) / "model.safetensors").unlink()
    for look in (find_checkpoint, load_last_good):
        with pytest.raises(CheckpointError, match="is missing") as error:
            look(tmp_path)
        assert len(error.value.problems) == 2


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.symlink", refuse)
    folder = CheckpointFolder(tmp_path)
    best, last = folder.save(checkpoint_of(1), is_best=True), folder.save(checkpoint_of(2), is_best=False)
    assert find_checkpoint(tmp_path) == best.resolve()
    assert find_checkpoint(tmp_path / "last", prefer="last") == last.resolve()


def test_a_disk_that_is_too_small_is_told_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(CheckpointError) as error:
        CheckpointFolder(tmp_path).save(checkpoint_of(3), is_best=False)
    assert "No space left on device: 164 B are needed, 100 B are free" in str(error.value)
    assert "step 3" in str(error.value) and "older checkpoints are intact" in str(error.value)
    assert list(tmp_path.iterdir()) == []


NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def test_no_value_that_is_not_finite_is_ever_written(tmp_path: Path) -> None:
    folder, generator, num_told = CheckpointFolder(tmp_path), np.random.default_rng(0), 0
    for _ in range(1000):
        shapes = {"a": (4, 3), "b": (), "c": (2, 3, 5, 5), "d": (0, 7)}
        dtype = DTYPES[generator.integers(len(DTYPES))]
        parts = {
            part: {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
            for part in ("model", "training", "optimizer")
        }
        part = ("model", "training", "optimizer")[generator.integers(3)]
        name = "abc"[generator.integers(3)]
        values = parts[part][name].view(-1)
        values[generator.integers(len(values))] = NOT_FINITE[generator.integers(3)]
        with pytest.raises(CheckpointError, match=f"not finite: {part}/{name}\n") as error:
            folder.save(Checkpoint(**{**vars(checkpoint_of(1)), **parts}), is_best=True)
        num_told += len(error.value.problems)
        assert list(tmp_path.iterdir()) == []
    assert num_told == 1000


def test_largest_finite_values_are_written(tmp_path: Path) -> None:
    model = {
        str(dtype): torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, 0]).to(dtype) for dtype in DTYPES
    }
    model = {name: value.nan_to_num() for name, value in model.items()}
    model |= {"empty": torch.zeros(0, 3), "bool": torch.tensor([True]), "int": torch.tensor(2**62)}
    written = Checkpoint(**{**vars(checkpoint_of(1)), "model": model})
    assert_same(load_checkpoint(CheckpointFolder(tmp_path).save(written, is_best=True), with_training=True), written)


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint_of(1), is_best=True)
    half = tmp_path / ".step-00000002-abc.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".last-123.tmp").symlink_to("step-00000002")
    folder.save(checkpoint_of(2), is_best=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last", "step-00000001", "step-00000002"]


def test_a_step_that_is_written_again_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    damaged = folder.save(checkpoint_of(2), is_best=True)
    (damaged / "model.safetensors").write_bytes(b"")
    again = folder.save(checkpoint_of(2), is_best=True)
    assert again.name == "step-00000002-2"
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


@pytest.mark.parametrize(("until", "expected"), [(None, 30), (99, 30), (30, 30), (29, 20), (20, 20), (9, 30)])
def test_a_rewind_reads_the_newest_that_lies_before_it_else_the_newest(
    tmp_path: Path, until: int | None, expected: int
) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=3)
    for step in (10, 20, 30):
        folder.save(checkpoint_of(step), is_best=False)
    checkpoint, problems = load_last_good(tmp_path, until=until)
    assert (checkpoint.state.step, problems) == (expected, [])
    folder.save(checkpoint_of(20), is_best=False)  # done again after a rewind: newer than 30
    assert load_last_good(tmp_path, until=25)[0].state.step == load_last_good(tmp_path)[0].state.step == 20
