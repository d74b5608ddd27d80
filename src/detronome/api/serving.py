"""Serving a model over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from detronome.errors import ConfigError
from detronome.types import Categories, Detections

if TYPE_CHECKING:
    from detronome.deploy.predictor import Predictor
    from detronome.deploy.serve.limits import Limits

__all__ = ["serve"]


def serve(
    checkpoint: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    threads: int | None = None,
    limits: Limits | None = None,
    allow_urls: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Answer predictions over HTTP until the process is told to stop; see docs/serving.md.

    The model runs in a process of its own, the only one that imports torch: a script that calls this needs
    `if __name__ == "__main__":`. Images that come one by one go through it in batches. What cannot be answered in time
    is refused at once, and after SIGTERM or Ctrl-C what has begun is finished.

    Args:
        checkpoint: anything that `load` takes, an exported file included.
        host: the address to listen at; whoever can reach it can use the model.
        port: 0 picks a free one.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: of the model on a CPU; by default one processor is left for everything else.
        limits: how much is taken on.
        allow_urls: fetch images from public addresses that clients name.
        on_ready: told the server's address once it answers.

    Raises:
        MissingExtraError: a package of the extra `serve` is not installed.
        ConfigError: the address or a limit cannot be used.
        CheckpointError: there is no such model, or it is damaged.
    """
    from detronome.deploy.serve.limits import Limits
    from detronome.deploy.serve.model_process import ModelProcess
    from detronome.deploy.serve.server import serve as run_server
    from detronome.deploy.serve.service import Service
    from detronome.report.results.pictures import draw_detections
    from detronome.runtime.processors import usable_cpus

    limits = limits or Limits()
    threads = threads if threads is not None else max(1, usable_cpus() - 1)
    if threads < 1:
        raise ConfigError("the model needs at least one thread", where="threads", fix="give 1 or more")

    def draw(
        image: UInt8[np.ndarray, "H W 3"], detections: Detections, categories: Categories
    ) -> UInt8[np.ndarray, "H2 W2 3"]:
        return draw_detections(image, detections, categories.by_id)

    open_model = partial(_open_model, str(checkpoint), device=device, threads=threads, batch_size=limits.max_batch)
    service = Service(ModelProcess(open_model), draw=draw, limits=limits)
    run_server(service, host=host, port=port, allows_urls=allow_urls, on_ready=on_ready)


def _open_model(checkpoint: str, *, device: str, threads: int, batch_size: int) -> Predictor:
    """Return the predictor; runs in the model's process."""
    import torch

    from detronome.deploy.predictor import build_predictor
    from detronome.model import load

    torch.set_num_threads(threads)
    model = load(checkpoint, device=device)
    return build_predictor(model.config, model.form, model.categories, model.device, batch_size=batch_size)
