"""What code costs the processor: for code that must not grow with the square of its input."""

import gc
import time


class CpuTime:
    """The seconds of this thread in a block, without other threads, waits and the collection of a suite's garbage."""

    seconds = float("nan")

    def __enter__(self) -> "CpuTime":
        self._collects = gc.isenabled()
        gc.disable()
        self._begin = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.thread_time() - self._begin
        if self._collects:
            gc.enable()
