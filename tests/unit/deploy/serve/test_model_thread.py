from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence

import numpy as np
import pytest
from fake_model import FakeProcess, SlowModel, open_never

from detronome.deploy.serve.limits import RefusedError
from detronome.deploy.serve.model_process import ModelProcess, ModelProcessError
from detronome.deploy.serve.model_thread import ModelThread
from detronome.deploy.serve.queue import BatchQueue, Job


def thread_of(process: ModelProcess, queue: BatchQueue, took: list[float]) -> ModelThread:
    def count(jobs: Sequence[Job], took_s: float) -> None:
        took.append(took_s)

    return ModelThread(process, queue, on_batch=count, on_restart=lambda: None)


def put(queue: BatchQueue, count: int) -> list[Job]:
    loop = asyncio.get_running_loop()
    jobs = [
        Job(image=np.full((1, 1, 3), n, np.uint8), deadline=time.monotonic() + 60, answer=loop.create_future())
        for n in range(1, count + 1)
    ]
    for job in jobs:
        queue.put(job)
    return jobs


def test_the_next_full_batch_is_sent_ahead(process: FakeProcess) -> None:
    async def scenario() -> None:
        queue = BatchQueue(max_batch=2, max_delay_s=0)
        took: list[float] = []
        thread = thread_of(process, queue, took)
        jobs = put(queue, 5)
        process.may_go_on.clear()
        process.seconds = 0.02
        thread.open()
        thread.start()
        while process.batches != [2] or not process.ahead:
            await asyncio.sleep(0.005)
        assert len(process.ahead) == 1 and len(queue) == 1
        await asyncio.sleep(0.5)
        process.may_go_on.set()
        answers = await asyncio.gather(*(job.answer for job in jobs))
        assert [found.boxes_xyxy[0, 0] for found, _ in answers] == [1, 2, 3, 4, 5]
        assert process.batches == [2, 2, 1]
        # A batch that was sent ahead is timed from the end of the one before it.
        assert took[0] > 0.5 > max(took[1:])
        thread.stop()

    asyncio.run(scenario())


def test_what_was_sent_is_refused_when_the_model_dies_and_the_rest_waits(process: FakeProcess) -> None:
    async def scenario() -> None:
        queue = BatchQueue(max_batch=2, max_delay_s=0)
        thread = thread_of(process, queue, [])
        thread.open()
        process.dies = True
        jobs = put(queue, 5)
        thread.start()
        answers = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        assert [isinstance(answer, RefusedError) for answer in answers] == [True] * 4 + [False]
        assert process.starts == 2
        thread.stop()

    asyncio.run(scenario())


def test_a_real_process_computes_batches_in_order_and_fails_alone() -> None:
    process = ModelProcess(SlowModel)
    try:
        process.start()
        black, gray, white = (np.full((2, 2, 3), n, np.uint8) for n in (0, 128, 255))
        process.send([gray, black])
        process.send([white])
        first, second = process.receive(), process.receive()
        assert [type(answer).__name__ for answer in first] == ["Detections", "RuntimeError"]
        assert not isinstance(second[0], Exception) and second[0].boxes_xyxy[0, 0] == 255
    finally:
        process.stop()
    assert not process.is_alive


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system stops no process")
def test_a_process_that_takes_no_batch_is_ended() -> None:
    process = ModelProcess(SlowModel, hang_s=0.5)
    try:
        process.start()
        assert process._process is not None and process._process.pid is not None
        os.kill(process._process.pid, signal.SIGSTOP)
        with pytest.raises(ModelProcessError):
            process.send([np.zeros((2000, 2000, 3), np.uint8)])
    finally:
        process.stop()


def test_a_process_that_does_not_open_its_model_in_time_is_ended() -> None:
    process = ModelProcess(open_never, start_s=0.5)
    with pytest.raises(ModelProcessError, match=r"within 0\.5 s"):
        process.start()
    assert not process.is_alive


def test_a_server_that_stops_leaves_no_model_that_is_being_started() -> None:
    process = ModelProcess(SlowModel)
    thread = thread_of(process, BatchQueue(max_batch=1, max_delay_s=0), [])

    async def scenario() -> None:
        thread.open()
        process._open_model = open_never
        thread.start()
        process.kill()
        started = process._process
        while process._process is started or process._process is None:
            await asyncio.sleep(0.01)

    asyncio.run(scenario())
    starting = process._process
    assert starting is not None and starting.is_alive()
    thread.stop()
    assert not starting.is_alive() and not thread._thread.is_alive() and process._process is None
