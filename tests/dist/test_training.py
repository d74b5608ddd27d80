"""A training over ranks is the training of one process: samples, weights, metrics, one log, one set of checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.dist.ranks import on_ranks
from tests.dist.runs import (
    CLASSIC,
    RankOfRun,
    command_line,
    farthest,
    go_on,
    learned,
    samples_of,
    tensors_of,
    train_run,
)
from torch._C._distributed_c10d import TCPStore

from detronome.report.run_log import read_run_log

pytestmark = [pytest.mark.dist, pytest.mark.alone]

STEPS_PER_EPOCH, EPOCHS = 4, 2
FSDP = {**CLASSIC, "train.parallel": "fsdp"}
Runs = dict[int, tuple[Path, list[RankOfRun]]]


@pytest.fixture(scope="module")
def runs(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same training on one process and on two, three and four ranks."""
    root = tmp_path_factory.mktemp("ranks")
    return {n: (root / str(n), on_ranks(n, train_run, blocks, root / str(n), CLASSIC)) for n in (1, 2, 3, 4)}


def numbers_of(run: Path) -> np.ndarray:
    """Losses, gradient norms and metrics, step by step."""
    rows: list[list[float]] = []
    for record in read_run_log(run / "log.jsonl"):
        if record["kind"] == "step":
            rows.append([record["loss"], record["grad_norm"], *record["losses"].values()])
        if record["kind"] == "eval":
            rows.append([np.nan if v is None else v for v in (*record["metrics"].values(), *record["losses"].values())])
    return np.concatenate(rows)


def assert_same_run(ours: Path, theirs: Path, *, within: float) -> None:
    assert farthest(tensors_of(ours), tensors_of(theirs)) <= within
    np.testing.assert_allclose(numbers_of(ours), numbers_of(theirs), rtol=2e-5, atol=within)


def thin_out(blocks: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy the data with other training annotations."""
    shutil.copytree(blocks, folder)
    file = folder / "annotations" / "instances_train.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    return folder


@contextmanager
def store_of_torchruns() -> Iterator[dict[str, str]]:
    """A store that outlives every rank, as torchrun keeps one; yields what it tells the ranks of it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


def damage(data: Path, *numbers: int) -> None:
    for number in numbers:
        (data / "images" / f"train_{number:02d}.png").write_bytes(b"no image")


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_any_number_of_ranks_trains_the_same_model(runs: Runs, num_ranks: int) -> None:
    alone, (single,) = runs[1]
    together, ranks = runs[num_ranks]
    assert samples_of(ranks) == samples_of([single])
    assert len(samples_of(ranks)) == STEPS_PER_EPOCH * EPOCHS
    assert_same_run(together, alone, within=1e-5)
    assert {rank.reason for rank in ranks} == {"finished"}
    assert len({repr(rank.metrics) for rank in ranks}) == 1


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_an_evaluation_sees_each_image_on_one_rank(runs: Runs, num_ranks: int) -> None:
    _, ranks = runs[num_ranks]
    for evaluation in zip(*(rank.evaluated for rank in ranks), strict=True):
        assert sorted(image for ids in evaluation for image in ids) == [100 + i for i in range(6)]
    assert len(ranks[0].evaluated) == EPOCHS


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_one_rank_writes_and_tells(runs: Runs, num_ranks: int) -> None:
    (alone, (single,)), (together, ranks) = runs[1], runs[num_ranks]
    assert [rank.num_events for rank in ranks] == [single.num_events, *[0] * (num_ranks - 1)]
    ours, theirs = ([r["kind"] for r in read_run_log(run / "log.jsonl")] for run in (together, alone))
    assert ours == theirs
    files, expected = ({p.relative_to(run) for p in run.rglob("*") if p.is_file()} for run in (together, alone))
    assert files - {Path("hangs")} == expected


def test_ranks_without_objects_and_without_images(blocks: Path, tmp_path: Path) -> None:
    def keep_a_few(record: dict[str, Any]) -> None:
        record["annotations"] = [a for a in record["annotations"] if a["image_id"] % 5 == 0]

    data = thin_out(blocks, tmp_path / "data", keep_a_few)
    settings = {**CLASSIC, "batch.global_batch_size": 3}
    (single,) = on_ranks(1, train_run, data, tmp_path / "alone", settings)
    ranks = on_ranks(4, train_run, data, tmp_path / "together", settings)
    assert samples_of(ranks) == samples_of([single])
    assert_same_run(tmp_path / "together", tmp_path / "alone", within=1e-5)
    assert not any(row.samples for row in ranks[3].trace) and len(ranks[3].trace) == 16
    num_objects = np.array([[row.num_objects for row in rank.trace] for rank in ranks])
    assert (num_objects.sum(0) == 0).any() and ((num_objects == 0).sum(0) == 3).any()


@pytest.mark.parametrize(("num_ranks", "struck"), [(2, {1: 2}), (3, {0: 5, 1: 5, 2: 5}), (2, {0: 3})])
def test_a_stop_signal_to_any_rank_stops_all_at_one_step_and_the_run_resumes_exactly(
    runs: Runs, blocks: Path, tmp_path: Path, num_ranks: int, struck: dict[int, int]
) -> None:
    out = tmp_path / "run"
    ranks = on_ranks(num_ranks, stopped_run, blocks, out, struck)
    (last,) = set(struck.values())
    assert {(rank.reason, rank.signal) for rank in ranks} == {("interrupted", "SIGTERM")}
    assert {rank.trace[-1].step for rank in ranks} == {last}
    shutil.copytree(out, tmp_path / "other", symlinks=True)
    again = on_ranks(num_ranks, go_on, out, {})
    assert {rank.trace[0].step for rank in again} == {last + 1}
    assert learned(out) == learned(runs[num_ranks][0])
    assert farthest(tensors_of(out), tensors_of(runs[num_ranks][0])) == 0
    on_ranks(1, go_on, tmp_path / "other", {})
    assert_same_run(tmp_path / "other", runs[1][0], within=1e-5)


def stopped_run(data: Path, out: Path, struck: dict[int, int]) -> RankOfRun:
    return train_run(data, out, CLASSIC, stop_at=struck)


def test_bad_images_within_the_budget_are_replaced_alike_and_told_once(blocks: Path, tmp_path: Path) -> None:
    data = shutil.copytree(blocks, tmp_path / "data")
    damage(data, 3, 10, 17)
    settings = {**CLASSIC, "data.bad_image_budget": 0.2}
    (single,) = on_ranks(1, train_run, data, tmp_path / "alone", settings)
    ranks = on_ranks(3, train_run, data, tmp_path / "together", settings)
    assert samples_of(ranks) == samples_of([single])
    assert_same_run(tmp_path / "together", tmp_path / "alone", within=1e-5)
    for run in ("alone", "together"):
        records = read_run_log(tmp_path / run / "log.jsonl")
        assert sorted(r["image_id"] for r in records if r["kind"] == "bad_image") == [103, 110, 117]


@pytest.mark.parametrize("budget", [0.2, 0.0])
def test_too_many_bad_images_over_all_ranks_are_one_error(blocks: Path, tmp_path: Path, budget: float) -> None:
    """With a budget, no rank has met too many by its own count; without one, the first to meet one fails alone."""
    data = shutil.copytree(blocks, tmp_path / "data")
    damage(data, 1, 5, 9, 12, 16, 19)
    settings = {**CLASSIC, "data.bad_image_budget": budget}
    with store_of_torchruns() as environment:
        ranks = on_ranks(3, train_run, data, tmp_path / "run", settings, environment=environment)
    assert [rank.error.partition(":")[0] for rank in ranks] == ["DataError"] * 3, [rank.error for rank in ranks]
    assert len({rank.error for rank in ranks}) == 1
    assert [rank.is_told for rank in ranks].count(False) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "optim.lr=-1"), "optim.lr"),
        (("--set", "optim.learning_rate=1"), "learning_rate"),
        (("--model", "no-such"), "no-such"),
        (("--bogus", "1"), "bogus"),
        ((), "already holds a run"),
    ],
)
def test_a_users_mistake_is_told_once(
    blocks: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, runs: Runs
) -> None:
    out = tmp_path / "run" if arguments else runs[2][0]
    base = ("train", str(blocks), "--out", str(out))
    with store_of_torchruns() as environment:
        ends = on_ranks(2, command_line, *base, *arguments, environment=environment)
    assert [code for code, _, _ in ends] == [2, 2]
    assert [stdout for _, stdout, _ in ends] == ["", ""]
    (told,) = [stderr for _, _, stderr in ends if stderr]
    assert message in told and told.count("error:") == 1 and "Traceback" not in told


def test_rank_0_alone_prints(blocks: Path, tmp_path: Path) -> None:
    settings = [text for name, value in CLASSIC.items() for text in ("--set", f"{name}={json.dumps(value)}")]
    base = ("train", str(blocks), "--model", "detr-r18", "--epochs", "1", "--out", str(tmp_path / "run"))
    (code, stdout, stderr), other = on_ranks(2, command_line, *base, *settings)
    assert code == 0 and "best checkpoint" in stdout and "finished" in stderr
    assert other == (0, "", "")


@pytest.mark.slow
def test_fsdp_trains_saves_and_resumes_under_anything(runs: Runs, blocks: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    ranks = on_ranks(2, stopped_sharded_run, blocks, sharded)
    assert all(rank.reason == "interrupted" and rank.num_sharded > 0 for rank in ranks)
    whole = tensors_of(sharded)
    assert {name: t.shape for name, t in whole.items()} == {n: t.shape for n, t in tensors_of(runs[1][0]).items()}
    endings = {"fsdp": (2, {}), "three": (3, {}), "ddp": (2, {"train.parallel": "ddp"}), "alone": (1, {})}
    for name, (num_ranks, settings) in endings.items():
        shutil.copytree(sharded, tmp_path / name, symlinks=True)
        again = on_ranks(num_ranks, go_on, tmp_path / name, settings)
        assert {rank.reason for rank in again} == {"finished"}
        assert all(bool(rank.num_sharded) == (name in ("fsdp", "three")) for rank in again)
        assert_same_run(tmp_path / name, runs[1][0], within=1e-5)


def stopped_sharded_run(data: Path, out: Path) -> RankOfRun:
    return train_run(data, out, FSDP, stop_at={1: 4})
