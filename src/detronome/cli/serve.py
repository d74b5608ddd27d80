"""`detronome serve`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from cyclopts import Parameter

from detronome.cli.options import MACHINE_GROUP, Json
from detronome.cli.render import print_json, print_notice
from detronome.errors import ConfigError, Problem

__all__ = ["serve"]

_MOST = 1e9
"""Of anything: seconds, images, megabytes."""


def serve(
    checkpoint: str,
    /,
    *,
    host: Annotated[str, MACHINE_GROUP] = "127.0.0.1",
    port: Annotated[int, MACHINE_GROUP] = 8000,
    device: Annotated[str, MACHINE_GROUP] = "auto",
    threads: Annotated[int | None, MACHINE_GROUP] = None,
    timeout: float = 10.0,
    max_batch: int = 8,
    max_delay_ms: float = 5.0,
    max_queue: int | None = None,
    max_body_mb: float = 20.0,
    max_megapixels: float = 50.0,
    grace: float = 30.0,
    allow_urls: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> None:
    """Answer predictions over HTTP: POST an image to /predict, or drop one on the page at /.

    Parameters
    ----------
    checkpoint
        Run or checkpoint folder, exported file, or published weights: detr-r50, a .pth or .safetensors file, ...
    host
        Address to listen at. 127.0.0.1 is this machine alone; with 0.0.0.0 whoever can reach it can use the model.
    port
        0 picks a free one.
    device
        auto, cpu, cuda, cuda:N or mps.
    threads
        Of the model on a CPU; by default one processor is left for everything else.
    timeout
        Seconds after which a request is answered with 503; a request may ask for less.
    max_batch
        Images that go through the model at once.
    max_delay_ms
        Milliseconds that an image waits for others while the model is idle.
    max_queue
        Images taken on at one moment; more are refused at once. By default four batches.
    max_body_mb
        Megabytes (10^6 bytes) of a request's body.
    max_megapixels
        Of an image, judged by its header before it is decoded.
    grace
        Seconds that requests have to finish after SIGTERM or Ctrl-C.
    allow_urls
        Fetch images from public addresses: {"url": "https://..."}.
    """
    from detronome import api
    from detronome.deploy.serve.limits import Limits
    from detronome.runtime.web import LOOPBACK

    _require_in_range(
        {
            "--timeout": timeout,
            "--max-batch": max_batch,
            "--max-queue": max_queue,
            "--max-body-mb": max_body_mb,
            "--max-megapixels": max_megapixels,
        },
        or_zero={"--max-delay-ms": max_delay_ms, "--grace": grace},
    )
    limits = Limits(
        timeout_s=timeout,
        max_batch=max_batch,
        max_delay_s=max_delay_ms / 1e3,
        max_queue=4 * max_batch if max_queue is None else max_queue,
        max_body_bytes=math.ceil(max_body_mb * 1e6),
        max_pixels=math.ceil(max_megapixels * 1e6),
        grace_s=grace,
    )
    if host not in LOOPBACK:
        print_notice(
            f"warning: whoever can reach port {port} of {host} can use this model; nothing asks for a password"
        )

    def tell(url: str) -> None:
        if json:
            print_json({"url": url, "checkpoint": checkpoint})
        print_notice(f"serving {checkpoint} at {url}  (Ctrl-C ends it)")

    api.serve(
        checkpoint,
        host=host,
        port=port,
        device=device,
        threads=threads,
        limits=limits,
        allow_urls=allow_urls,
        on_ready=tell,
    )


def _require_in_range(above_zero: Mapping[str, float | None], *, or_zero: Mapping[str, float]) -> None:
    """Raise a `ConfigError` unless the number of every option is finite, and above 0 or at least 0."""
    numbers = [(option, number) for option, number in above_zero.items() if number is not None]
    wrong = [(option, number, "above 0") for option, number in numbers if not 0 < number <= _MOST]
    wrong += [(option, number, "from 0") for option, number in or_zero.items() if not 0 <= number <= _MOST]
    if wrong:
        raise ConfigError(
            [
                Problem(what=f"{number:g} is out of range", where=option, fix=f"give a number {least} up to {_MOST:g}")
                for option, number, least in wrong
            ]
        )
