"""Ranks on this machine, as torchrun would start them, forked from a server that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["RankError", "on_ranks"]

PRELOADED = ["detronome", "detronome.api.runs", "detronome.report.html", "torch._dynamo", "tests.dist.ranks"]


class RankError(AssertionError):
    """A rank raised, or ended without a word."""


def on_ranks(
    num_ranks: int,
    function: Callable[..., Any],
    *args: object,
    timeout_s: float = 120.0,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Call a function of a module on each rank; return what it returned, by rank.

    All ranks are ended when one of them raises or the time is over.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = _free_port()
    processes, pipes = [], []
    for rank in range(num_ranks):
        ours, theirs = context.Pipe(duplex=False)
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **({"DETRONOME_CACHE": cache} if (cache := os.environ.get("DETRONOME_CACHE")) else {}),
            **(environment or {}),
        }
        process = context.Process(target=_rank, args=(theirs, variables, str(Path.cwd()), function, args))
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    try:
        return _answers(pipes, time.monotonic() + timeout_s)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _answers(pipes: list[Connection], deadline: float) -> list[Any]:
    answers: dict[int, Any] = {}
    failures: list[str] = []
    while len(answers) < len(pipes) and not failures:
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in answers]
        ready = multiprocessing.connection.wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"ranks {[r for r in range(len(pipes)) if r not in answers]} did not answer in time")
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                is_sound, answer = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                is_sound, answer = False, "ended without a word"
            answers[rank] = answer
            if not is_sound:
                failures.append(f"rank {rank}: {answer}")
    if failures:
        raise RankError("\n".join(failures))
    return [answers[rank] for rank in range(len(pipes))]


def _rank(
    pipe: Connection, variables: Mapping[str, str], folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch

    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        answer = (True, function(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    pipe.send(answer)
    pipe.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
