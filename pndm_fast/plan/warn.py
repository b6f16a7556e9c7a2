"""Warnings that point at the caller's own line, however deep in the package they are given."""

from __future__ import annotations

import sys
import warnings


class Notice(UserWarning):
    """What this package warns of; a category of its own, so that it can be filtered, or made an error, alone."""


def warn(text: str) -> None:
    """A `Notice` at the innermost frame outside `pndm_fast`."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pndm_fast":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, Notice, stacklevel=level)
