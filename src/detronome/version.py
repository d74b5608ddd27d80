"""The version, in the one place that the build, the command line and every written file read it from."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0.dev0"
"""`X.Y.Z.dev0` on the way to X.Y.Z, so that no work in progress passes for a release. See docs/releasing.md."""
