"""How much the server takes on, and what it says when it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from detronome.errors import ConfigError, Problem

__all__ = ["Limits", "RefusedError"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of a server: each keeps time or memory finite, whatever is sent to it.

    Raises:
        ConfigError: one of them is not above 0, or infinite.
    """

    timeout_s: float = 10.0
    """From the request's head to the end of its answer; a request may ask for less."""
    max_batch: int = 8
    """Images that the model sees at once."""
    max_delay_s: float = 0.005
    """How long the first image of a batch waits for others while the model is idle."""
    max_queue: int = 32
    """Images between the upload and the answer: decoded, waiting or in the model."""
    max_body_bytes: int = 20 * 2**20
    """Of one request."""
    max_pixels: int = 50_000_000
    """Of one image; looked up in its header before anything is decoded."""
    max_upload_bytes: int = 2**28
    """Of all bodies that are held at one moment: what was uploaded, and large answers that are not read yet."""
    max_decoded_bytes: int = 2**30
    """Of all decoded images at one moment."""
    max_connections: int = 1000
    """Open at one moment; predictions on more are refused, and far more are closed."""
    idle_s: float = 15.0
    """How long a connection may stay open without a whole request head, or with an answer that is not read."""
    grace_s: float = 30.0
    """How long requests may take to finish after a signal to stop."""

    def __post_init__(self) -> None:
        problems = [
            Problem(what=f"{name} must be above 0, not {getattr(self, name):g}", where=name, fix="give another number")
            for name in (field.name for field in fields(self))
            if not 0 < getattr(self, name) < math.inf and name not in ("max_delay_s", "grace_s")
        ]
        problems += [
            Problem(
                what=f"{name} must be at least 0, not {getattr(self, name):g}", where=name, fix="give another number"
            )
            for name in ("max_delay_s", "grace_s")
            if not 0 <= getattr(self, name) < math.inf
        ]
        if problems:
            raise ConfigError(problems)


class RefusedError(Exception):
    """A request is answered with an error, for a reason that its sender can understand.

    Args:
        status: of HTTP.
        reason: one word, for the metrics.
        what: what is wrong.
        fix: what to do about it.
        retry_after_s: when it may be worth to ask again.
    """

    def __init__(
        self, status: int, reason: str, what: str, *, fix: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.reason = reason
        self.what = what
        self.fix = fix
        self.retry_after_s = retry_after_s
