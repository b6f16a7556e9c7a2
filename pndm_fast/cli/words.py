"""What the words of the command line mean."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from pndm_fast.cli.errors import UsageError

# known here without torch, which takes seconds to import; a test compares them with what they name
BATCH = 64
DEMO, DEMO_PSLD, DEMO_FLOW = "demo:mnist", "demo:psld", "demo:flow"
DEMOS = (DEMO, DEMO_PSLD, DEMO_FLOW)
DTYPES = ("fp32", "fp16", "bf16")
BACKENDS = ("auto", "cpp", "triton", "reference")
GRAPHS = ("auto", "while", "replay", "eager")
ON_NAN = ("raise", "mark", "ignore")
FLAGS = ("solver", "schedule", "steps", "nfe", "spacing", "prediction", "compat")  # not to be given as --option
MOST = 1_000_000  # pictures, and labels
WORDS = {"true": True, "false": False, "none": None}


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """key=value, ... with values as numbers, true, false, none, [lists] or text.

    Raises:
        UsageError: no such pair, a key given twice, or one that is no option.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise UsageError(f"--option must be key=value, got {pair!r}")
        if key in options:
            raise UsageError(f"--option must give each key once, got {key!r} twice")
        options[key] = _value(text.strip())
    return check_options(options)


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options, none of which may be a flag.

    Raises:
        UsageError: naming it.
    """
    for name, value in options.items():
        if name in FLAGS:
            where = "to the command plan, " if name == "compat" else ""
            raise UsageError(f"--option {name} must be given {where}as --{name}, got {value!r}")
    return options


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    readers: tuple[Callable[[str], Any], ...] = (json.loads,) if text.startswith("[") else (int, float)
    for read in readers:
        with contextlib.suppress(ValueError, RecursionError):
            return read(text)
    return text


def parse_classes(words: Sequence[str] | None) -> tuple[int, ...] | None:
    """3, 1,4 or 0-9, joined; none is an empty tuple; None where nothing was given.

    Raises:
        UsageError: another form.
    """
    if not words:
        return None
    if list(words) == ["none"]:
        return ()
    labels: list[int] = []
    for part in ",".join(words).split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high < low + MOST:
            raise UsageError(f"--class must be labels such as 3, 1,4 or 0-9, or none alone, got {part!r}")
        labels.extend(range(low, high + 1))
    return tuple(labels)


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """C,H,W.

    Raises:
        UsageError: not positive integers.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5}){2}", text, re.ASCII):
        raise UsageError(f"--shape must be C,H,W, got {text!r}")
    return tuple(map(int, text.split(",")))
