"""The environment doctor: what is installed and this machine. Imports neither torch nor anything that may be broken."""

from __future__ import annotations

from collections.abc import Callable

from detronome.doctor.examination import examine_environment
from detronome.doctor.findings import LIMIT_S, Examination

__all__ = ["check_environment"]


def check_environment(*, limit_s: float = LIMIT_S, on_stage: Callable[[str], None] = lambda stage: None) -> Examination:
    """Return what `detronome doctor` finds: each finding with its cause and the command that repairs it.

    Every package is called in a process of its own, so a broken one ends nothing here.

    Args:
        limit_s: seconds for the whole, 2 to 3600; what has not answered then is named in a finding.
        on_stage: is told what is being done.

    Raises:
        ConfigError: for another limit.
    """
    return examine_environment(on_stage, limit_s=limit_s)
