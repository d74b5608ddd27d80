"""What the always-on monitor costs: the change of sections within a step, and the sampler of the machine.

The difference of two noisy step times cannot show a thousandth, so the parts are timed alone: processor seconds of one
sample, and of one change of section, times how many of them a step has. A GPU's marks are part of the change.

    python benches/bench_monitor.py --threads 1 --out benches/results
"""

from __future__ import annotations

import statistics

import torch

from bench_guard import CASES, StepGuard, preset, synthetic_batch, training_step
from detronome.runtime.device_clock import DeviceClock
from detronome.runtime.monitor import SystemMonitor, _Sampler
from detronome.runtime.progress import Progress, Section
from harness import Samples, arguments, compare, report

SWITCHES = 10_000
TRAINER_SWITCHES = 5
"""Changes of section in a step that the trainer makes, not the step: data, agreeing twice, the checkpoint and back."""


def main() -> None:
    """Time the parts, report."""
    parser = arguments(__doc__, repeats=20, warmup=2)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampler, interval_s = _Sampler(device), SystemMonitor(device)._interval_s
    cases: dict[str, dict[str, Samples]] = {}
    for name in options.cases:
        preset_name, batch_size, size_hw = CASES[name]
        step, batch = training_step(preset(preset_name), StepGuard), synthetic_batch(batch_size, size_hw)
        entered: list[Section] = []
        step.activity = Progress(marker=entered.append)
        number = 0

        def run(step=step, batch=batch) -> None:  # type: ignore[no-untyped-def]
            nonlocal number
            step(batch, step=number, progress=0.5, before_update=step.guard.read)
            number += 1

        run()
        num_switches = len(entered) + TRAINER_SWITCHES
        step.activity = Progress()
        contenders = {
            "step": run,
            f"{SWITCHES} sections": lambda: switch(device),
            "sample": sampler,
        }
        samples = compare(contenders, repeats=options.repeats, warmup=options.warmup)
        cases[f"{name}, batch {batch_size}, {size_hw[0]}x{size_hw[1]}"] = samples
        step_s = statistics.median(samples["step"]["wall_s"])
        switch_s = statistics.median(samples[f"{SWITCHES} sections"]["wall_s"]) / SWITCHES
        sample_s = statistics.fmean(samples["sample"]["cpu_s"])  # one in eight looks for new workers, and costs more
        print(
            f"{name}: {num_switches} sections of {switch_s * 1e6:.2f} us are {num_switches * switch_s / step_s:.4%} "
            "of a step"
        )
        print(f"a sample every {interval_s:g} s takes {sample_s * 1e3:.2f} ms: {sample_s / interval_s:.3%} of a core")
    report("monitor", cases, baseline="step", settings=vars(options) | {"out": str(options.out)}, out=options.out)


def switch(device: torch.device) -> None:
    """Change sections many times."""
    progress = Progress(marker=DeviceClock(device).mark if device.type == "cuda" else None)
    for _ in range(SWITCHES // 2):
        progress.enter(Section.FORWARD)
        progress.enter(Section.BACKWARD)


if __name__ == "__main__":
    main()
