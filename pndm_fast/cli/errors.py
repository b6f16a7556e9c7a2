"""What ends a command with one line and an exit code."""

from __future__ import annotations

import traceback
from pathlib import Path


class UsageError(Exception):
    """A mistake in the arguments, found before the first network call: code 2."""


class JobError(Exception):
    """The model failed, or something could not be written: code 1."""


def told(error: Exception) -> str:
    """An exception in one line, with the place that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"
