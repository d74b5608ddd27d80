"""Makes `run_events` importable: in pytest's importlib mode a test folder is on no path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
