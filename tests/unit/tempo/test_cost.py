"""Times follow from work and device: more of the one never takes less, more of the other never takes more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.tempo.cost import PassTime, assignment_seconds, pass_time, run_time
from detronome.tempo.hardware import Device, find_device
from detronome.tempo.memory.account import Cause, MemoryAccount, OpCost, StepTrace
from detronome.tempo.workload import Workload

H200 = find_device("h200")
V100 = find_device("v100 16GB")


def op(section: str, *, flops: float = 0.0, moved: float = 0.0, count: int = 1, name: str = "aten.mm") -> OpCost:
    return OpCost(
        name=name,
        section=section,
        count=count,
        flops=int(flops),
        bytes=int(moved),
        dtype="float32",  # type: ignore[arg-type]
    )


def trace(*ops: OpCost, num_images: int = 1) -> StepTrace:
    account = MemoryAccount(
        phase="training",
        shape="100x100",
        num_images=num_images,
        num_objects=1,
        bytes_by_cause={Cause.WEIGHTS: 1},
        moment="backward",
    )
    return StepTrace(account=account, ops=ops)


def workload(**changes: object) -> Workload:
    plain = Workload(
        global_batch_size=8,
        world_size=1,
        passes=2.0,
        steps_per_epoch=100,
        epochs=3,
        evaluations=3,
        num_val_images=50,
        gradient_bytes=10**8,
    )
    return replace(plain, **changes)


PASSED = PassTime(forward_s=0.01, matcher_s=0.002, loss_s=0.001, backward_s=0.02, update_s=0.003)


def test_nothing_takes_no_time() -> None:
    passed = pass_time(trace(), H200, num_images=1)
    assert passed.micro_batch_s == passed.update_s == 0


def test_a_kernel_takes_the_longer_of_computing_and_moving() -> None:
    computing = pass_time(trace(op("forward", flops=1e12)), H200, num_images=1).forward_s
    moving = pass_time(trace(op("forward", moved=1e12)), H200, num_images=1).forward_s
    both = pass_time(trace(op("forward", flops=1e12, moved=1e12)), H200, num_images=1).forward_s
    assert both == max(computing, moving)
    assert computing > 1e12 / H200.flops_s["fp32"], "no kernel reaches the peak"
    assert moving > 1e12 / 4.8e12


def test_many_small_kernels_wait_for_the_host_on_a_gpu_alone() -> None:
    small = trace(op("forward", flops=1, moved=1, count=1000))
    assert pass_time(small, H200, num_images=1).forward_s == pytest.approx(8e-3)
    assert pass_time(small, V100, num_images=1).forward_s == pytest.approx(8e-3)


def test_images_count_in_proportion_but_the_update_once() -> None:
    one = trace(op("backward", flops=1e12), op("update", moved=1e9), num_images=2)
    double, single = (pass_time(one, H200, num_images=n) for n in (4, 2))
    assert double.backward_s == pytest.approx(2 * single.backward_s)
    assert double.update_s == single.update_s


def test_convolutions_in_fp32_use_tf32_where_there_is_one_and_products_do_not() -> None:
    def seconds(name: str, device: Device) -> float:
        return pass_time(trace(op("forward", flops=1e13, name=name)), device, num_images=1).forward_s

    assert seconds("aten.convolution", H200) < seconds("aten.mm", H200)
    assert seconds("aten.convolution", V100) == seconds("aten.mm", V100)


@given(st.floats(1, 1e13), st.floats(1, 1e12), st.integers(1, 5000), st.floats(1, 4))
def test_more_work_never_takes_less(flops: float, moved: float, count: int, factor: float) -> None:
    def seconds(flops: float, moved: float, count: int, device: Device) -> float:
        ops = trace(op("forward", flops=flops, moved=moved, count=count))
        return pass_time(ops, device, num_images=1).micro_batch_s

    base = seconds(flops, moved, count, V100)
    assert seconds(flops * factor, moved, count, V100) >= base
    assert seconds(flops, moved * factor, count, V100) >= base
    assert seconds(flops, moved, count + 1, V100) >= base
    assert seconds(flops, moved, count, H200) <= base


def test_training_waits_for_the_slower_of_device_and_data() -> None:
    fast = run_time(PASSED, workload(images_s_worker=10_000.0, workers=8))
    slow = run_time(PASSED, workload(images_s_worker=1.0, workers=4))
    unknown = run_time(PASSED, workload())
    assert fast.waits_for == unknown.waits_for == "device" and slow.waits_for == "data"
    assert fast.step_s == fast.device_s == unknown.device_s == pytest.approx(2 * 0.033 + 0.003)
    assert slow.step_s == slow.data_s == 2.0
    assert slow.workers_needed is not None and slow.workers_needed > 4
    assert unknown.data_s is unknown.workers_needed is None


def test_without_workers_loading_and_computing_take_turns() -> None:
    alone = run_time(PASSED, workload(images_s_worker=100.0, workers=0))
    assert alone.step_s == pytest.approx(alone.device_s + 0.08)


def test_an_epoch_and_a_run_add_up_and_the_price_follows() -> None:
    time = run_time(PASSED, workload())
    assert time.epoch_s == pytest.approx(100 * time.step_s)
    assert time.total_s == pytest.approx(3 * time.epoch_s + 3 * time.evaluation_s)
    assert run_time(PASSED, workload(evaluations=0)).total_s == pytest.approx(3 * time.epoch_s)
    assert time.price(2.5, 4) == pytest.approx(time.total_s / 3600 * 10)
    assert sum(time.sections_s.values()) == pytest.approx(time.device_s)
    assert time.to_record()["waits_for"] == "device"


def test_several_gpus_pay_for_the_sum_of_gradients() -> None:
    alone, pair = run_time(PASSED, workload()), run_time(PASSED, workload(world_size=2))
    assert alone.sections_s["reduce"] == 0
    assert pair.sections_s["reduce"] == pytest.approx(0.01)


def test_assigning_more_takes_longer() -> None:
    few = assignment_seconds(num_queries=100, num_objects=0.0, num_layers=1, num_images=1)
    many = assignment_seconds(num_queries=300, num_objects=1000, num_layers=6, num_images=4)
    assert 0 < few < many
