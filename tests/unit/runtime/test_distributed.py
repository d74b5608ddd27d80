import pickle
from typing import Any

import pytest
from tests.dist.ranks import on_ranks

from detronome.errors import ConfigError, DetronomeError, MissingExtraError, Problem, TrainingError
from detronome.runtime.distributed import ALONE, World, joined_world, world_of_environment


def test_alone_every_call_is_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert world_of_environment() == ALONE == World() and ALONE.is_main
    assert ALONE.sum([1, 2.5]) == ALONE.max([1, 2.5]) == [1, 2.5]
    assert ALONE.sum([]) == []
    assert ALONE.gather("item") == ["item"]
    assert ALONE.broadcast("item") == "item" == ALONE.on_main(lambda: "item")
    with joined_world("cpu", timeout_s=1) as world:
        assert world == ALONE


def test_torchruns_environment_says_which_rank_this_is() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    world = world_of_environment(environment)
    assert world == World(rank=5, size=8, local_rank=1, local_size=4) and not world.is_main


@pytest.mark.parametrize(
    "changes",
    [{"RANK": "8"}, {"RANK": "-1"}, {"RANK": "x"}, {"LOCAL_RANK": "4"}, {"LOCAL_WORLD_SIZE": ""}, {"WORLD_SIZE": "0"}],
)
def test_an_environment_that_makes_no_sense_is_refused_whole(changes: dict[str, str]) -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"} | changes
    with pytest.raises(TrainingError, match="make no sense") as error:
        world_of_environment(environment)
    assert all(f"{name}={value}" in str(error.value) for name, value in environment.items())


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("wrong", where="here", fix="so"),
        TrainingError([Problem(what="one"), Problem(what="two", fix="so")]),
        MissingExtraError("skimage", extra="demo", needed_for="the demo"),
    ],
)
def test_errors_travel_between_processes_whole(error: DetronomeError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and copy.problems == error.problems and str(copy) == str(error)


@pytest.mark.dist
def test_ranks_tell_each_other() -> None:
    ranks = on_ranks(3, conversation)
    assert [r.pop("errors") for r in ranks] == [("told", False), ("told", True), ("told", True)]
    assert [r.pop("rank") for r in ranks] == [0, 1, 2]
    assert (
        ranks
        == [
            {
                "sum": [3.0, 3.0 * 2**50],
                "max": [2.0],
                "gather": ["", "x", "xx"],
                "broadcast": {"of": 0},
                "on_main": "done by 0",
            }
        ]
        * 3
    )


def conversation() -> dict[str, Any]:
    with joined_world("cpu", timeout_s=30) as world:

        def fail() -> None:
            raise ConfigError("told")

        try:
            world.on_main(fail)
        except ConfigError as error:
            errors = (error.problems[0].what, error.is_told)
        return {
            "rank": world.rank,
            "sum": world.sum([world.rank, 2**50]),
            "max": world.max([world.rank]),
            "gather": world.gather("x" * world.rank),
            "broadcast": world.broadcast({"of": world.rank}),
            "on_main": world.on_main(lambda: f"done by {world.rank}"),
            "errors": errors,
        }
