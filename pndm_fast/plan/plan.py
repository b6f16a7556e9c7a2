"""A sampler as data: one `Row` per network call, known before sampling starts."""

from __future__ import annotations

import json
import math
import numbers as numbers_abc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pndm_fast.plan import matrix2
from pndm_fast.plan.atomic import atomic_path
from pndm_fast.plan.levels import AnyLevel, Level, Levels, PhaseLevel
from pndm_fast.plan.matrix2 import Coefficient, coefficient
from pndm_fast.plan.text import form_text, store_text

MAX_SLOTS = 6  # F-PNDM and FON: three kept derivatives and three Runge-Kutta stages
MAX_ROWS = 65_536
LARGEST = float(np.finfo(np.float32).max)
PREDICTIONS = ("eps", "v", "x0", "flow", "edm")
WIDTH_FORM = 2 + MAX_SLOTS + 1

Form = NDArray[np.float64]  # [WIDTH_FORM], or [WIDTH_FORM, 2, 2]: a linear combination of x, y, the slots and z

_BASIS = np.eye(WIDTH_FORM)
_BASIS.setflags(write=False)
ANCHOR: Form = _BASIS[0]  # x: the state after the last completed step
STATE: Form = _BASIS[1]  # y: the point the network sees
SLOT: tuple[Form, ...] = tuple(_BASIS[2 : 2 + MAX_SLOTS])  # past converted network outputs
NOISE: Form = _BASIS[-1]  # z: the row's standard normal
SAME_X, SAME_Y = tuple(ANCHOR.tolist()), tuple(STATE.tolist())  # a register that a row leaves as it is
NAMES = ("x", "y", *(f"s{k}" for k in range(MAX_SLOTS)), "z")


class OutputMap(NamedTuple):
    """slot <- p2 y + q2 clamp(p y + q out): from what the network predicts to what the solver combines."""

    p: Coefficient = 0.0
    q: Coefficient = 1.0
    p2: Coefficient = 0.0
    q2: Coefficient = 1.0
    clamp: float = math.inf

    @property
    def raw(self) -> bool:
        """The network's own output, unchanged."""
        return self == OutputMap()


@dataclass(frozen=True)
class Row:
    """One network call and the linear update after it.

    out = network(in_scale y, t), at a guidance other than 1 uncond + guidance (cond - uncond);
    slot <- store(y, out);
    x, y <- X . [x, y, slots, z], Y . [x, y, slots, z]. X and Y read the old x and y, the new slot and one z.
    `preview` gives the network's x_0 estimate as preview[0] y + preview[1] slot, with the y that it saw. `model` says
    which network is called, of those that a `Sampler` has. Coefficients are numbers, or in phase space 2x2 blocks on
    [position, momentum], the halves of a sample.

    Raises:
        ValueError: a number is not finite, or an index is outside its range.
    """

    t: float
    slot: int
    y: tuple[Coefficient, ...]
    levels: Levels
    x: tuple[Coefficient, ...] = SAME_X
    store: OutputMap = OutputMap()
    preview: tuple[Coefficient, Coefficient] = (1.0, 0.0)
    in_scale: Coefficient = 1.0
    guidance: float = 1.0
    model: int = 0
    ends_step: bool = True

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            form = tuple([coefficient(c) for c in getattr(self, name)])
            if len(form) != WIDTH_FORM:
                raise ValueError(f"{name} must have {WIDTH_FORM} coefficients, got {len(form)}")
            object.__setattr__(self, name, form)
        if len(self.preview) != 2 or not isinstance(self.ends_step, bool):
            raise ValueError(f"preview must be two coefficients and ends_step true or false, got {self}")
        if self.components > 1:  # coefficients c I are kept as c
            p, q, p2, q2, clamp = self.store
            object.__setattr__(
                self, "store", OutputMap(coefficient(p), coefficient(q), coefficient(p2), coefficient(q2), clamp)
            )
            object.__setattr__(self, "in_scale", coefficient(self.in_scale))
            object.__setattr__(self, "preview", (coefficient(self.preview[0]), coefficient(self.preview[1])))
        numbers = (self.t, *self.x, *self.y, *self.store[:4], self.in_scale, self.guidance, *self.preview)
        _check_numbers("the coefficients of a row", (*numbers, *sum(self.levels, ())))
        if isinstance(self.slot, bool) or not isinstance(self.slot, int) or not 0 <= self.slot < MAX_SLOTS:
            raise ValueError(f"slot must be in [0, {MAX_SLOTS}), got {self.slot}")
        if isinstance(self.model, bool) or not isinstance(self.model, int) or self.model < 0:
            raise ValueError(f"model must be the index of a network, got {self.model!r}")
        if isinstance(self.store.clamp, bool) or not self.store.clamp > 0:
            raise ValueError(f"clamp must be positive, got {self.store.clamp}")

    @property
    def components(self) -> int:
        """2 where a coefficient is a block on position and momentum, else 1."""
        return matrix2.components((*self.y, *self.x, *self.store[:4], self.in_scale, *self.preview))

    @property
    def noisy(self) -> bool:
        """Whether the row reads its z."""
        return bool(self.x[-1] or self.y[-1])

    @property
    def reads(self) -> frozenset[int]:
        """The slots that X and Y read."""
        return frozenset(k for k in range(MAX_SLOTS) if self.x[2 + k] or self.y[2 + k])


class Prologue(NamedTuple):
    """x_0 = y_0 = a0 p0 noise + c0 z: the start, before the first network call. A given state stands for p0 noise."""

    p0: Coefficient = 1.0
    a0: Coefficient = 1.0
    c0: Coefficient = 0.0


@dataclass(frozen=True)
class Plan:
    """An immutable table of rows and a prologue: everything that a solver is.

    Raises:
        ValueError: naming the row, when a row reads a slot that no earlier row has written, or levels do not join.
    """

    rows: tuple[Row, ...]
    solver: str = "custom"
    steps: int = 0
    prediction: str = "eps"
    prologue: Prologue = field(default_factory=Prologue)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        _check_numbers("the prologue", self.prologue)
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}")
        if not all(isinstance(row, Row) for row in self.rows):
            raise TypeError("rows must be of type Row")
        if not 1 <= len(self.rows) <= MAX_ROWS:
            raise ValueError(f"a plan must have 1 to {MAX_ROWS} rows, got {len(self.rows)}")
        written: set[int] = set()
        x = y = self.rows[0].levels.call
        for i, row in enumerate(self.rows):
            written.add(row.slot)
            for k in sorted(row.reads - written):
                raise ValueError(f"row {i}: reads slot {k}, which no earlier row has written")
            if row.levels.call != y:
                raise ValueError(f"row {i}: is called at level {row.levels.call}, but row {i - 1} leaves y at {y}")
            kept = {SAME_X: x, SAME_Y: y}.get(row.x)  # x stays, or becomes what the network saw
            if kept is not None and row.levels.x != kept:
                raise ValueError(f"row {i}: leaves x at {kept}, but declares {row.levels.x}")
            x, y = row.levels.x, row.levels.y

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def nfe(self) -> int:
        """Network calls: the number of rows."""
        return len(self.rows)

    @property
    def times(self) -> tuple[float, ...]:
        """The time of each network call, in order."""
        return tuple(row.t for row in self.rows)

    @property
    def n_slots(self) -> int:
        """Registers for past outputs."""
        return 1 + max(row.slot for row in self.rows)

    @cached_property
    def components(self) -> int:
        """2 for samples of position and momentum, whose coefficients are blocks, else 1."""
        return max(matrix2.components(self.prologue), *(row.components for row in self.rows))

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
        if isinstance(start, PhaseLevel) or isinstance(a0, tuple) or isinstance(c0, tuple):
            return start
        alpha, sigma = start
        return Level(alpha / a0, math.sqrt(max(sigma**2 - c0**2, 0.0)) / a0)

    @property
    def raw(self) -> bool:
        """Whether every row stores the network's output unchanged and unguided."""
        return all(row.store.raw and row.guidance == 1.0 for row in self.rows)

    @cached_property
    def kinds(self) -> tuple[tuple[int, bool], ...]:
        """For each row, which network it calls and whether it is guided."""
        return tuple((row.model, row.guidance != 1.0) for row in self.rows)

    def with_clip(self, limit: float) -> Plan:
        """The same plan with every estimate of x_0 clamped to [-limit, limit], whatever the slots hold.

        x_0 = a y + b slot (a row's preview), so the slot of a clamped estimate is (clamp(a y + b slot) - a y) / b. A
        row at sigma = 0, where b is 0 and y is the data, stays as it is. In phase space that of m_0 is clamped too.

        Raises:
            ValueError: limit is not positive, or a row is clamped already.
        """
        if isinstance(limit, bool) or not isinstance(limit, numbers_abc.Real):
            raise TypeError(f"clip must be a number, got {limit!r}")
        if not 0 < limit < math.inf:
            raise ValueError(f"clip must be positive, got {limit}")
        return replace(self, rows=tuple(_clipped(row, float(limit)) for row in self.rows))

    def with_models(self, models: Sequence[int]) -> Plan:
        """The same plan with the index of a network for each row; the history is kept where it changes.

        `[0] * k + [1] * (nfe - k)` is T-Stitch (Pan et al. 2024, arXiv:2402.14167): a small network, then a large one.
        """
        models = [int(m) if hasattr(m, "__index__") and not isinstance(m, bool) else m for m in models]
        if len(models) != self.nfe:
            raise ValueError(f"models must be one for each of the {self.nfe} rows, got {len(models)}")
        return replace(self, rows=tuple(replace(row, model=m) for row, m in zip(self.rows, models, strict=True)))

    def with_guidance(self, scale: float | Sequence[float], interval: tuple[float, float] | None = None) -> Plan:
        """The same plan at another guidance scale, one for all rows or one for each.

        Args:
            interval: guide the rows alone that are called at low < sigma/alpha <= high, the position's
                (Kynkaanniemi et al. 2024, arXiv:2404.07724); the others evaluate the condition alone.
        """
        scales: list[Any] = [scale] * self.nfe if isinstance(scale, numbers_abc.Real) else list(scale)  # type: ignore[arg-type]
        if len(scales) != self.nfe:
            raise ValueError(
                f"guidance must be a number or one for each of the {self.nfe} rows, got {len(scales)}: "
                "plans of several lengths take theirs by with_guidance"
            )
        if interval is not None:
            low, high = check_interval(interval)
            inside = [
                low * alpha < sigma <= high * alpha for alpha, sigma in (row.levels.call.position for row in self)
            ]
            scales = [g if i else 1.0 for g, i in zip(scales, inside, strict=True)]
        rows = tuple(replace(row, guidance=float(g)) for row, g in zip(self.rows, scales, strict=True))
        return replace(self, rows=rows)

    def __str__(self) -> str:
        head = f"{self.solver}: {self.steps} steps, {self.nfe} network calls, {self.n_slots} slots, {self.prediction}"
        lines = [head, f"{'row':>4} {'t':>9} {'alpha':>8} {'sigma':>8}  update"]
        for i, row in enumerate(self.rows):
            call = row.levels.call.position
            text = f"{i:>4} {row.t:>9.6g} {call.alpha:>8.5f} {call.sigma:>8.5f}  s{row.slot} <- {store_text(row.store)}"
            if row.x != SAME_X:
                text += f";  x <- {form_text(row.x, NAMES)}"
            lines.append(f"{text};  y <- {form_text(row.y, NAMES)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain tree of numbers and strings; zero coefficients are left out."""
        return {
            "format": "pndm_fast.plan.1",
            "solver": self.solver,
            "steps": self.steps,
            "prediction": self.prediction,
            "prologue": self.prologue._asdict(),
            "rows": [_row_json(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, tree: Any) -> Plan:
        """The plan that `to_json` described.

        Raises:
            ValueError: the tree is not a plan; the message names the row and the field.
        """
        if not isinstance(tree, dict) or tree.get("format") != "pndm_fast.plan.1":
            raise ValueError("a plan file must be a JSON object with format 'pndm_fast.plan.1'")
        rows = tree.get("rows")
        if not isinstance(rows, list):
            raise ValueError(f"rows must be a list, got {type(rows).__name__}")
        try:
            prologue = Prologue(**{k: coefficient(v) for k, v in tree.get("prologue", {}).items()})
            steps = int(tree.get("steps", 0))
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"a plan's prologue and steps must be numbers: {error}") from error
        parsed = tuple(_row_from_json(i, row) for i, row in enumerate(rows))
        return cls(parsed, str(tree.get("solver", "custom")), steps, str(tree.get("prediction", "eps")), prologue)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON: whole or not at all."""
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
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
        raise TypeError(f"guidance_interval must be (low, high) in sigma/alpha, got {interval!r}") from error
    if not 0 <= low < high:
        raise ValueError(f"guidance_interval must be 0 <= low < high, got {interval!r}")
    return low, high


def distinct(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """The different plan objects, in order of appearance; a plan may be large, so none is compared."""
    return tuple({id(plan): plan for plan in plans}.values())


def _check_numbers(what: str, coefficients: Sequence[Coefficient]) -> None:
    """Numbers that float32 can hold.

    Raises:
        ValueError: another type, not finite, or too large.
    """
    for number in matrix2.numbers(coefficients):
        real = type(number) is float or (isinstance(number, numbers_abc.Real) and not isinstance(number, bool))
        if not (real and abs(number) <= LARGEST):
            raise ValueError(f"{what} must be finite float32 numbers, got {number!r}")


def _clipped(row: Row, limit: float) -> Row:
    if math.isfinite(row.store.clamp):
        raise ValueError("clip must be given once: the plan is clipped already")
    a, b = row.preview
    if b == 0:
        return row
    p, q, p2, q2, _ = row.store
    inner = matrix2.total(a, matrix2.product(b, matrix2.total(p2, matrix2.product(q2, p))))
    outer = matrix2.solve(b, matrix2.product(-1.0, a)), matrix2.solve(b, 1.0)
    return replace(row, store=OutputMap(inner, matrix2.product(matrix2.product(b, q2), q), *outer, limit))


def _row_json(row: Row) -> dict[str, Any]:
    tree = asdict(row)
    for name in ("x", "y"):
        tree[name] = {n: c for n, c in zip(NAMES, tree[name], strict=True) if c}
    tree["store"] = {k: v for k, v in row.store._asdict().items() if v != math.inf}
    if row.model == 0:
        del tree["model"]
    return tree


def _row_from_json(i: int, tree: Any) -> Row:
    try:
        fields = dict(tree)
        for name in ("x", "y"):
            unknown = set(fields[name]) - set(NAMES)
            if unknown:
                raise ValueError(f"{name} has no operand {sorted(unknown)[0]!r}")
            fields[name] = tuple(coefficient(fields[name].get(n, 0.0)) for n in NAMES)
        fields["levels"] = Levels(*map(_level_from_json, fields["levels"]))
        store: dict[str, Any] = {k: coefficient(v) for k, v in fields["store"].items()}
        fields["store"] = OutputMap(**store)
        fields["preview"] = tuple(map(coefficient, fields["preview"]))
        if "in_scale" in fields:
            fields["in_scale"] = coefficient(fields["in_scale"])
        return Row(**fields)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"row {i}: {error if isinstance(error, ValueError) else repr(error)}") from error


def _level_from_json(tree: Any) -> AnyLevel:
    alpha, sigma = tree
    if isinstance(alpha, (list, tuple)) or isinstance(sigma, (list, tuple)):
        return PhaseLevel(*(((float(a), float(b)), (float(c), float(d))) for (a, b), (c, d) in (alpha, sigma)))
    return Level(float(alpha), float(sigma))
