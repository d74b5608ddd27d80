"""What a checkpoint costs the training: written at once, or copied beside the next step and written in the background.

The state is that of DETR-R50 with an average: weights, average and two moments. Convolutions stand for the forward and
backward passes, an addition to all of it for the update. A round is a few such steps with one checkpoint at its start;
the background's is over at the end of the round or waited for. `stall` is what the loop waits in `save` and `settle`;
the table has whole rounds, which also hold what the writer's thread takes from the computation.

    python benches/bench_checkpoint.py --out benches/results
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from detronome.config.schema import DetrConfig
from detronome.engine.checkpoint import Checkpoint, CheckpointFolder
from detronome.engine.checkpoint_writer import CheckpointWriter
from detronome.engine.state import TrainingState
from detronome.models.build import build_model
from detronome.types import Categories
from harness import arguments, compare, report

NUM_CLASSES = 91


def main() -> None:
    """Check that both ways write the same values, time, report."""
    parser = arguments(__doc__, repeats=10)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round")
    parser.add_argument("--step-seconds", type=float, default=1.0, help="of forward and backward passes")
    parser.add_argument("--folder", type=Path, help="where the disk is to be measured; default: for temporary files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    state = training_state()
    tensors = [tensor for part in state.parts().values() for tensor in part.values() if tensor.is_floating_point()]
    compute = work(options.step_seconds)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        writer = CheckpointWriter(CheckpointFolder(Path(folder)), parameters=state.model)
        ways = ("at once", "in the background")
        saves: dict[str, list[float]] = {way: [] for way in ways}
        settles: dict[str, list[float]] = {way: [] for way in ways}

        def round_of(way: str) -> None:
            settle_s = 0.0
            started = time.perf_counter()
            if way == "at once":
                writer.save_now(state, is_best=False)
            elif way == "in the background":
                writer.save(state, is_best=False)
            save_s = time.perf_counter() - started
            for _ in range(options.steps):
                compute()
                started = time.perf_counter()
                writer.settle()
                settle_s += time.perf_counter() - started
                torch._foreach_add_(tensors, 1e-6)
            writer.wait()
            if way in ways:
                saves[way].append(save_s)
                settles[way].append(settle_s)

        check_same(writer, state)
        contenders: dict[str, Callable[[], object]] = {
            way: lambda way=way: round_of(way) for way in ("no checkpoint", *ways)
        }
        cases = {
            f"{options.steps} steps, one checkpoint": compare(
                contenders, repeats=options.repeats, warmup=options.warmup
            )
        }
    stalls = {way: stall(saves[way][options.warmup :], settles[way][options.warmup :]) for way in ways}
    sha_s = seconds_to_hash(tensors)
    share = sha_s / (stalls["at once"]["median_ms"] / 1e3)
    for way, figures in stalls.items():
        print(f"stall, written {way}: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    print(f"SHA-256 alone: {1e3 * sha_s:.0f} ms, {share:.0%} of writing at once")
    settings = vars(options) | {"out": str(options.out), "folder": None}
    measured = {"stall": stalls, "sha256_s": sha_s, "sha256_share": share, "bytes": sum(t.nbytes for t in tensors)}
    report("checkpoint", cases, baseline="no checkpoint", settings=settings | measured, out=options.out)


def stall(saves_s: list[float], settles_s: list[float]) -> dict[str, float]:
    """Return what the loop waited for a checkpoint, in milliseconds."""
    both = [1e3 * (save + settle) for save, settle in zip(saves_s, settles_s, strict=True)]
    return {
        "median_ms": statistics.median(both),
        "max_ms": max(both),
        "save_median_ms": 1e3 * statistics.median(saves_s),
        "settle_median_ms": 1e3 * statistics.median(settles_s),
    }


def training_state() -> Checkpoint:
    """Return weights, average and moments of DETR-R50, in its memory layout."""
    model = build_model(DetrConfig(backbone_weights="none"), NUM_CLASSES)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    moments = {
        f"{name}.{moment}": torch.rand_like(weights[name])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for moment in ("exp_avg", "exp_avg_sq")
    }
    return Checkpoint(
        config={},
        categories=Categories(tuple(range(NUM_CLASSES)), tuple(map(str, range(NUM_CLASSES)))),
        state=TrainingState(step=1),
        model={name: tensor.clone() for name, tensor in weights.items()},
        training=weights,
        optimizer=moments,
    )


def work(seconds: float) -> Callable[[], None]:
    """Return forward and backward passes through a few layers that take about so long."""
    layers = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())))
    images = torch.rand(2, 32, 120, 160)

    def once() -> None:
        layers(images).square().mean().backward()

    samples = []
    for _ in range(20):
        started = time.perf_counter()
        once()
        samples.append(time.perf_counter() - started)
    count = max(1, round(seconds / min(samples)))  # other programs only make it slower

    def repeat() -> None:
        for _ in range(count):
            once()

    return repeat


def check_same(writer: CheckpointWriter, state: Checkpoint) -> None:
    """Write both ways and compare what is read."""
    writer.save_now(state, is_best=False)
    at_once = writer.load_last()
    writer.save(replace(state, state=TrainingState(step=2)), is_best=False)
    in_background = writer.load_last()
    for part, tensors in in_background.parts().items():
        assert all(torch.equal(tensor, at_once.parts()[part][name]) for name, tensor in tensors.items())
    assert in_background.state.step == 2


def seconds_to_hash(tensors: list[Tensor]) -> float:
    """Return the median time of hashing all values."""
    flat = [tensor.contiguous().view(-1).view(torch.uint8).numpy() for tensor in tensors]
    samples = []
    for _ in range(5):
        started = time.perf_counter()
        digest = hashlib.sha256()
        for values in flat:
            digest.update(values)
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


if __name__ == "__main__":
    main()
