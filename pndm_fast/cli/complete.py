"""What a shell offers where TAB is pressed. Nothing here may need torch: it takes seconds to import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import typer

from pndm_fast.solvers import SOLVER_INFO, SOLVERS
from pndm_fast.solvers.auto import AUTO

Completion = Callable[..., list[str]]
OF_GRID = ("clip", "final", "sigmas", "t_min")


def among(words: Iterable[str]) -> Completion:
    """Those of the words that begin so."""
    known = tuple(words)

    def complete(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return complete


def solver(context: typer.Context, incomplete: str) -> list[str]:
    """The solvers' names; for --compat those that it has."""
    if context.params.get("compat"):
        from pndm_fast.solvers.compat import COMPAT

        names: Iterable[str] = sorted(COMPAT.get(str(context.params["compat"]), ()))
    else:
        names = [*sorted(SOLVERS), AUTO]
    return among(names)(incomplete)


def option(context: typer.Context, incomplete: str) -> list[str]:
    """key= for the options of the solver that is named, or of all; key=true and key=false for a switch."""
    name = str(context.params.get("solver") or "")
    functions: Iterable[Any] = [SOLVERS[name]] if name in SOLVER_INFO else SOLVERS.values()
    found = {word: None for word in OF_GRID} | {
        p.name: p.annotation
        for function in functions
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("prediction", "integer_times")
    }
    words = [
        text
        for key in sorted(found)
        for text in ([f"{key}=true", f"{key}=false"] if found[key] in (bool, "bool") else [f"{key}="])
    ]
    return among(words)(incomplete)
