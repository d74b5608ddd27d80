from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detronome.deploy.serve.queue import BatchQueue, Job


def job(loop: asyncio.AbstractEventLoop, number: int = 0, *, deadline_s: float = 60.0) -> Job:
    return Job(
        image=np.full((1, 1, 3), number, np.uint8), deadline=time.monotonic() + deadline_s, answer=loop.create_future()
    )


def numbers(batch: list[Job] | None) -> list[int]:
    assert batch is not None
    return [int(one.image[0, 0, 0]) for one in batch]


def test_an_empty_queue_gives_an_empty_batch_and_a_closed_one_none() -> None:
    queue = BatchQueue(max_batch=4, max_delay_s=0)
    assert queue.take(timeout_s=0) == []
    queue.close()
    assert queue.take(timeout_s=10) is None


@given(
    waiting=st.lists(st.sampled_from(["wanted", "cancelled", "late"]), max_size=20),
    max_batch=st.integers(1, 6),
)
def test_batches_hold_what_is_wanted_in_order(waiting: list[str], max_batch: int) -> None:
    loop = asyncio.new_event_loop()
    queue = BatchQueue(max_batch=max_batch, max_delay_s=0)
    for number, kind in enumerate(waiting):
        one = job(loop, number, deadline_s=-1 if kind == "late" else 60)
        queue.put(one)
        if kind == "cancelled":
            one.answer.cancel()
    taken: list[int] = []
    while len(queue):
        batch = numbers(queue.take(timeout_s=0))
        assert len(batch) <= max_batch
        taken += batch
    assert taken == [number for number, kind in enumerate(waiting) if kind == "wanted"]
    loop.close()


def test_a_full_batch_is_taken_without_waiting_and_a_partial_one_is_left() -> None:
    loop = asyncio.new_event_loop()
    queue = BatchQueue(max_batch=2, max_delay_s=30)
    for number in range(3):
        queue.put(job(loop, number))
    assert numbers(queue.take_full()) == [0, 1]
    assert queue.take_full() == [] and len(queue) == 1
    queue.close()
    assert queue.take_full() is None
    loop.close()


def test_an_image_waits_for_others_but_not_for_long() -> None:
    loop = asyncio.new_event_loop()
    queue = BatchQueue(max_batch=2, max_delay_s=0.1)
    started = time.monotonic()
    queue.put(job(loop))
    assert len(queue.take(timeout_s=1) or []) == 1
    assert time.monotonic() - started >= 0.1

    queue = BatchQueue(max_batch=2, max_delay_s=30)
    queue.put(job(loop, 1))
    later = threading.Timer(0.05, lambda: queue.put(job(loop, 2)))
    later.start()
    assert numbers(queue.take(timeout_s=1)) == [1, 2]  # long before its delay is over
    later.join()
    loop.close()
