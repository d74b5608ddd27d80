"""OpenVINO and NNCF tell a server of their use, from the moment of their import. Here they do not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_usage_reports"]

_REPORTER = "openvino_telemetry"
"""The package that sends; both do without it where it is not installed."""


@contextmanager
def without_usage_reports() -> Iterator[None]:
    """Import OpenVINO or NNCF as if the package that sends reports were not installed.

    A program that has imported the two before keeps them as they are.
    """
    imported = sys.modules.get(_REPORTER)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # importing it now fails
    try:
        yield
    finally:
        sys.modules.pop(_REPORTER, None)  # another thread may have been here too
        if imported is not None:
            sys.modules[_REPORTER] = imported
