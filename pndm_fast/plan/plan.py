"""A sampler as data: a table of rows, known before sampling starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from pndm_fast.plan import matrix2
from pndm_fast.plan.atomic import atomic_path
from pndm_fast.plan.checks import choose, shown
from pndm_fast.plan.levels import AnyLevel, Level, PhaseLevel
from pndm_fast.plan.numbers import is_integer, is_number, plain
from pndm_fast.plan.row import NAMES, PHASE_SLOTS, PREDICTIONS, SAME_X, SAME_Y, Prologue, Row, check_numbers, read
from pndm_fast.plan.text import form_text, guidance_text, store_text

MAX_ROWS = 65_536
FORMAT = "pndm_fast.plan.1"


@dataclass(frozen=True, repr=False)
class Plan:
    """An immutable table of rows and a prologue: everything that a solver is.

    Facts of the whole table are found once, at the first question, and are no part of its value: copies and pickles
    leave them behind.

    Attributes:
        fitted: of a plan that was fitted to a network, what to and how well: a tree as JSON has it. It is no part of
            what a plan does, or of what makes two plans equal.

    Raises:
        ValueError: naming the row, when a row reads a slot that no earlier row has written, or levels do not join.
    """

    rows: tuple[Row, ...]
    solver: str = "custom"
    steps: int = 0
    prediction: str = "eps"
    prologue: Prologue = field(default_factory=Prologue)
    fitted: dict[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        check_numbers("the prologue", self.prologue)
        choose("prediction", self.prediction, PREDICTIONS)
        if self.fitted is not None and not isinstance(self.fitted, dict):
            raise ValueError(f"fitted must be an object, got {shown(self.fitted)}")
        for row in self.rows:
            if not isinstance(row, Row):
                raise TypeError(f"rows must be of type Row, got {type(row).__name__}")
        if not 1 <= len(self.rows) <= MAX_ROWS:
            raise ValueError(f"a plan must have 1 to {MAX_ROWS} rows, got {len(self.rows)}")
        written: set[int] = set()
        x = y = self.rows[0].levels.call
        for i, row in enumerate(self.rows):
            written |= row.writes
            for k in sorted(row.reads - written):
                raise ValueError(f"row {i}: reads slot {k}, which no earlier row has written")
            if row.levels.call != y:
                raise ValueError(f"row {i}: is called at level {row.levels.call}, but row {i - 1} leaves y at {y}")
            kept = {SAME_X: x, SAME_Y: y}.get(row.x)  # x stays, or becomes what the network saw
            if kept is not None and row.levels.x != kept:
                raise ValueError(f"row {i}: leaves x at {kept}, but declares {row.levels.x}")
            x, y = row.levels.x, row.levels.y
        if self.components > 1 and (self.keeps_uncond or self.n_slots > PHASE_SLOTS):
            raise ValueError(
                f"a plan of 2x2 matrices must have slots in [0, {PHASE_SLOTS}), no second ones, got {self.n_slots}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def nfe(self) -> int:
        """Network calls: the number of rows."""
        return len(self.rows)

    @cached_property
    def times(self) -> tuple[float, ...]:
        """The time of each network call, in order."""
        return tuple(row.t for row in self.rows)

    @cached_property
    def n_slots(self) -> int:
        """Registers for past outputs."""
        return 1 + max(max(row.writes) for row in self.rows)

    @cached_property
    def keeps_uncond(self) -> bool:
        """Whether some row keeps the unconditional output too."""
        return any(row.second is not None for row in self.rows)

    @cached_property
    def has_factors(self) -> bool:
        """Whether some row multiplies the guidance scale."""
        return any(row.guidance_factor != 1.0 for row in self.rows)

    @cached_property
    def components(self) -> int:
        """2 for samples of position and momentum, whose coefficients are matrices, else 1."""
        return max(matrix2.components((*self.prologue, *self.entry)), *(row.components for row in self.rows))

    @cached_property
    def kinds(self) -> tuple[tuple[int, bool], ...]:
        """For each row, which network it calls and whether it is guided."""
        return tuple((row.model, row.guided) for row in self.rows)

    @cached_property
    def run_ends(self) -> tuple[int, ...]:
        """For each row, where the run of consecutive rows of its kind ends: the index after the last of them."""
        ends: list[int] = []
        for _, length in self.runs:
            ends += [len(ends) + length] * length
        return tuple(ends)

    @cached_property
    def runs(self) -> tuple[tuple[tuple[int, bool], int], ...]:
        """Consecutive rows of one kind: the kind, and how many they are."""
        return tuple((kind, len(list(run))) for kind, run in groupby(self.kinds))

    @cached_property
    def last_model(self) -> int:
        """The highest index of a network that a row calls."""
        return max(row.model for row in self.rows)

    @cached_property
    def guided(self) -> bool:
        """Whether some row is guided: a call then needs what is evaluated without the condition."""
        return any(row.guided for row in self.rows)

    @cached_property
    def noisy(self) -> tuple[bool, ...]:
        """For each row, whether it reads its z."""
        return tuple(row.noisy for row in self.rows)

    @cached_property
    def raw(self) -> bool:
        """Whether every row stores the network's output unchanged and unguided."""
        return not self.guided and all(row.store.raw for row in self.rows)

    @cached_property
    def unscaled(self) -> bool:
        """Whether the network sees y itself in every row."""
        return all(row.in_scale == 1.0 for row in self.rows)

    @property
    def start(self) -> AnyLevel:
        """The noise level at which the first call is made."""
        return self.rows[0].levels.call

    @property
    def entry(self) -> AnyLevel:
        """The noise level of what the prologue starts from: `start`, but for what a0 and c0 do.

        In phase space they are a part of a splitting step, which leads to no other level.
        """
        a0, c0, start = self.prologue.a0, self.prologue.c0, self.start
        if isinstance(start, PhaseLevel) or isinstance(a0, tuple) or isinstance(c0, tuple) or not a0:
            return start
        alpha, sigma = start
        return Level(alpha / a0, math.sqrt(max(sigma**2 - c0**2, 0.0)) / a0)

    def with_clip(self, limit: float) -> Plan:
        """The same plan with every estimate of x_0 clamped to [-limit, limit], whatever the slots hold.

        x_0 = a y + b slot (a row's preview), so the slot of a clamped estimate is (clamp(a y + b slot) - a y) / b. A
        row at sigma = 0, where b is 0 and y is the data, stays as it is. In phase space that of m_0 is clamped too.

        Raises:
            ValueError: limit is not positive, or a row is clamped already.
        """
        if not is_number(limit):
            raise TypeError(f"clip must be a number, got {shown(limit)}")
        if not 0 < limit < math.inf:
            raise ValueError(f"clip must be positive, got {limit}")
        return replace(self, rows=tuple(row.with_clip(float(limit)) for row in self.rows))

    def with_models(self, models: Sequence[int]) -> Plan:
        """The same plan with the index of a network for each row; the history is kept where it changes.

        `[0] * k + [1] * (nfe - k)` is T-Stitch (Pan et al. 2024, arXiv:2402.14167): a small network, then a large one.
        """
        models = plain(models)
        if isinstance(models, str) or not isinstance(models, Iterable):
            raise TypeError(f"models must be one for each of the {self.nfe} rows, got {shown(models)}")
        models = [int(m) if hasattr(m, "__index__") and not isinstance(m, bool) else m for m in models]
        if len(models) != self.nfe:
            raise ValueError(f"models must be one for each of the {self.nfe} rows, got {len(models)}")
        return replace(self, rows=tuple(replace(row, model=m) for row, m in zip(self.rows, models, strict=True)))

    def with_guidance(self, scale: float | Sequence[float], interval: tuple[float, float] | None = None) -> Plan:
        """The same plan at another guidance scale, one for all rows or one for each; a row's factor multiplies its own.

        Args:
            interval: guide the rows alone that are called at low < sigma/alpha <= high, the position's
                (Kynkaanniemi et al. 2024, arXiv:2404.07724); the others have scale 1: where nothing else asks for
                more they evaluate the condition alone.
        """
        given = plain(scale)
        several = isinstance(given, Iterable) and not isinstance(given, str)
        scales = list(given) if several else [given] * self.nfe
        if len(scales) != self.nfe:
            raise ValueError(
                f"guidance must be a number or one for each of the {self.nfe} rows, got {len(scales)}: "
                "plans of several lengths take theirs by with_guidance"
            )
        for g in scales:
            if isinstance(g, bool) or not hasattr(g, "__float__"):
                raise TypeError(f"guidance must be a number or one for each row, got {shown(g)}")
        if interval is not None:
            low, high = check_interval(interval)
            inside = [
                low * alpha < sigma <= high * alpha for alpha, sigma in (row.levels.call.position for row in self)
            ]
            scales = [g if i else 1.0 for g, i in zip(scales, inside, strict=True)]
        each = zip(self.rows, scales, strict=True)
        return replace(self, rows=tuple([replace(row, guidance=float(g) * row.guidance_factor) for row, g in each]))

    def with_times(self, times: Sequence[float] | Callable[[float], float]) -> Plan:
        """The same plan with other times told to the network: one for each row, or a function of its own.

        Levels and coefficients stay. `math.trunc` is for networks of whole training times; fitted plans move times a
        little (LD3, Tong et al. 2024, arXiv:2405.15506).
        """
        times = times if callable(times) else plain(times)
        if not callable(times) and (isinstance(times, str) or not isinstance(times, Iterable)):
            raise TypeError(f"times must be one for each row or a function, got {shown(times)}")
        told = [times(row.t) for row in self.rows] if callable(times) else list(times)
        if len(told) != self.nfe:
            raise ValueError(f"times must be one for each of the {self.nfe} rows, got {len(told)}")
        for t in told:
            if not is_number(t) or not math.isfinite(t):
                raise ValueError(f"times must be finite numbers, got {shown(t)}")
        return replace(self, rows=tuple([replace(row, t=float(t)) for row, t in zip(self.rows, told, strict=True)]))

    @cached_property
    def restarts(self) -> tuple[bool, ...]:
        """After which rows the state may be replaced by another at its level.

        These end a step, and later rows take nothing of the anchor from before: a predictor-corrector's do, and its
        next correction would undo the change.
        """
        found, needed = [], False
        for row in reversed(self.rows):
            found.append(row.ends_step and not needed)
            needed = bool(row.y[0]) or (needed and bool(row.x[0]))
        return tuple(reversed(found))

    def __repr__(self) -> str:
        return f"<Plan {self._head}, t = {self.times[0]:g} to {self.times[-1]:g}>"

    @property
    def _head(self) -> str:
        calls = f"{self.nfe} network calls, {self.n_slots} slots"
        return f"{self.solver}: {self.steps} steps, {calls}, {self.prediction}"

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: self.__dict__[f.name] for f in fields(self)}

    def __str__(self) -> str:
        lines = [self._head, f"{'row':>4} {'t':>9} {'alpha':>8} {'sigma':>8}  update"]
        for i, row in enumerate(self.rows):
            call = row.levels.call.position
            alpha = f"{call.alpha:.1e}" if 0 < call.alpha < 1e-3 else f"{call.alpha:.5f}"
            text = f"{i:>4} {row.t:>9.6g} {alpha:>8} {call.sigma:>8.5f}  s{row.slot} <- {store_text(row.store)}"
            text += guidance_text(row)
            if row.x != SAME_X:
                text += f";  x <- {form_text(row.x, NAMES)}"
            lines.append(f"{text};  y <- {form_text(row.y, NAMES)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain tree of numbers and strings; zero coefficients are left out."""
        tree = {
            "format": FORMAT,
            "solver": self.solver,
            "steps": self.steps,
            "prediction": self.prediction,
            "prologue": self.prologue._asdict(),
            "rows": [row.to_json() for row in self.rows],
        }
        return tree if self.fitted is None else {**tree, "fitted": self.fitted}

    @classmethod
    def from_json(cls, tree: Any) -> Self:
        """The plan that `to_json` described.

        Raises:
            ValueError: the tree is not a plan; the message names the row and the field.
        """
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            got = f"format {shown(tree['format'])}" if isinstance(tree, dict) and "format" in tree else "none"
            raise ValueError(f"a plan file must be a JSON object with format {FORMAT!r}, got {got}")
        for name in tree:
            choose("an entry of a plan", name, ("format", *cls.__dataclass_fields__))
        rows = tree.get("rows")
        if not isinstance(rows, list):
            raise ValueError(f"rows must be a list, got {type(rows).__name__}")
        prologue, steps = read("prologue", tree.get("prologue", {})), tree.get("steps", 0)
        if not is_integer(steps) or steps < 0:
            raise ValueError(f"steps must be an integer from 0 on, got {shown(steps)}")
        parsed: list[Row] = []
        for i, row in enumerate(rows):
            try:
                parsed.append(Row.from_json(row))
            except ValueError as error:
                raise ValueError(f"row {i}: {error}") from error
        solver, prediction = str(tree.get("solver", "custom")), str(tree.get("prediction", "eps"))
        return cls(tuple(parsed), solver, steps, prediction, prologue, tree.get("fitted"))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON: whole or not at all."""
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan that `save` wrote. Numbers come back exactly."""
        try:
            tree = json.loads(Path(path).read_text())
        except (ValueError, RecursionError) as error:  # not JSON, not text, or nested too deep
            raise ValueError(f"{path} is not JSON: {error}") from error
        return cls.from_json(tree)


def check_interval(interval: Any) -> tuple[float, float]:
    """Two increasing values of sigma/alpha.

    Raises:
        TypeError, ValueError: anything else.
    """
    try:
        low, high = map(float, interval)
    except (TypeError, ValueError) as error:
        raise TypeError(f"interval must be (low, high) in sigma/alpha, got {shown(interval)}") from error
    if not 0 <= low < high:
        raise ValueError(f"interval must be 0 <= low < high, got {shown(interval)}")
    return low, high


def distinct(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """The different plan objects, in order of appearance; a plan may be large, so none is compared."""
    return tuple({id(plan): plan for plan in plans}.values())
