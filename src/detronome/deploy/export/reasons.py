"""What a runtime's error says, in a line: torch and ONNX Runtime write pages, with the reason at the top."""

from __future__ import annotations

__all__ = ["reason_of"]


def reason_of(error: Exception) -> str:
    """Return the first line of an error's text that is not empty, or the name of its kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
