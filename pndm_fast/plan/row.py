"""One line of a plan: a network call and the linear update after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pndm_fast.plan import matrix2
from pndm_fast.plan.checks import choose, shown
from pndm_fast.plan.levels import AnyLevel, Level, Levels, PhaseLevel
from pndm_fast.plan.matrix2 import Coefficient, coefficient
from pndm_fast.plan.numbers import is_number

MAX_SLOTS = 12  # ten calls whose every output is kept, and two to spare
PHASE_SLOTS = 6  # of 2x2 matrices
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


class Prologue(NamedTuple):
    """x_0 = y_0 = a0 p0 noise + c0 z: the start, before the first network call. A given state stands for p0 noise.

    On variance-preserving schedules p0 is 1: x_T is the noise itself, as the data's part of it is neglected (Ho et al.
    2020, arXiv:2006.11239). Where x_t is not of unit variance it is sigma_T. k-diffusion starts with sigma_max z in
    unscaled data, which is sigma_T z here, a little less: diffusers' schedulers of that kind under compat have that.
    """

    p0: Coefficient = 1.0
    a0: Coefficient = 1.0
    c0: Coefficient = 0.0

    def __repr__(self) -> str:
        return f"Prologue({', '.join(f'{name}={matrix2.text(c)}' for name, c in self._asdict().items())})"


@dataclass(frozen=True, repr=False)
class Row:
    """One network call and the linear update after it.

    out = network(in_scale y, t), at a guidance other than 1 uncond + guidance (cond - uncond);
    slot <- store(y, out), and where there is a second slot, second <- store(y, uncond);
    x, y <- X . [x, y, slots, z], Y . [x, y, slots, z]. X and Y read the old x and y, the new slots and one z.
    t is what the network is told; `levels` is where y stands, which may be elsewhere. `guidance_factor` is what a scale
    is multiplied by (`Plan.with_guidance`), and guidance itself where none is given; a preview is then that of the
    multiplied guidance, which the slot holds.
    `preview` gives the network's x_0 estimate as preview[0] y + preview[1] slot, with the y that it saw. `model` says
    which network is called, of those that a `Sampler` has. Coefficients are numbers, or in phase space 2x2 matrices on
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
    guidance: float = None  # type: ignore[assignment]  # None is guidance_factor, at scale 1
    model: int = 0
    ends_step: bool = True
    second: int | None = None
    guidance_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.guidance is None:
            object.__setattr__(self, "guidance", self.guidance_factor)
        for name in ("x", "y"):
            form = tuple([coefficient(c) for c in getattr(self, name)])
            if len(form) != WIDTH_FORM:
                raise ValueError(f"{name} must have {WIDTH_FORM} coefficients, got {len(form)}")
            object.__setattr__(self, name, form)
        if len(self.preview) != 2:
            raise ValueError(f"preview must be two coefficients, got {len(self.preview)}")
        if not isinstance(self.ends_step, bool):
            raise ValueError(f"ends_step must be true or false, got {shown(self.ends_step)}")
        if self.components > 1:  # coefficients c I are kept as c
            p, q, p2, q2, clamp = self.store
            object.__setattr__(
                self, "store", OutputMap(coefficient(p), coefficient(q), coefficient(p2), coefficient(q2), clamp)
            )
            object.__setattr__(self, "in_scale", coefficient(self.in_scale))
            object.__setattr__(self, "preview", (coefficient(self.preview[0]), coefficient(self.preview[1])))
        numbers = (self.t, *self.x, *self.y, *self.store[:4], self.in_scale, self.guidance, *self.preview)
        check_numbers("the coefficients of a row", (*numbers, self.guidance_factor, *sum(self.levels, ())))
        self._check_slots()
        if isinstance(self.model, bool) or not isinstance(self.model, int) or self.model < 0:
            raise ValueError(f"model must be the index of a network, got {shown(self.model)}")
        if isinstance(self.store.clamp, bool) or not self.store.clamp > 0:
            raise ValueError(f"clamp must be positive, got {self.store.clamp}")

    def _check_slots(self) -> None:
        most = MAX_SLOTS if self.components == 1 else PHASE_SLOTS
        for name, slot in (("slot", self.slot), *((("second", self.second),) if self.second is not None else ())):
            if isinstance(slot, bool) or not isinstance(slot, int) or not 0 <= slot < most:
                raise ValueError(f"{name} must be a slot in [0, {most}), got {shown(slot)}")
        if self.second is not None and (self.second == self.slot or self.components > 1):
            raise ValueError(f"second must be a slot of its own, of rows of numbers, got {self.second}")
        if self.reads and max(self.reads) >= most:
            raise ValueError(f"rows of 2x2 matrices must read slots in [0, {most}), got {max(self.reads)}")

    def __repr__(self) -> str:
        forms = (self.y,) if self.x == SAME_X else (self.y, self.x)
        read = " ".join(name for name, *c in zip(NAMES, *forms, strict=True) if any(c))
        here, there = (f"alpha {at.position.alpha:.4g} sigma {at.position.sigma:.4g}" for at in self.levels[::2])
        return f"<Row t = {self.t:g}, s{self.slot}: from {here} to {there}, reads {read}>"

    @property
    def components(self) -> int:
        """2 where a coefficient is a matrix on position and momentum, else 1."""
        return matrix2.components((*self.y, *self.x, *self.store[:4], self.in_scale, *self.preview))

    @property
    def noisy(self) -> bool:
        """Whether the row reads its z."""
        return bool(self.x[-1] or self.y[-1])

    @property
    def guided(self) -> bool:
        """Whether the network is also called without the condition."""
        return self.guidance != 1.0 or self.second is not None

    @property
    def writes(self) -> frozenset[int]:
        """The slots that outputs go to."""
        return frozenset({self.slot} if self.second is None else {self.slot, self.second})

    @property
    def reads(self) -> frozenset[int]:
        """The slots that X and Y read."""
        return frozenset(k for k in range(MAX_SLOTS) if self.x[2 + k] or self.y[2 + k])

    def with_clip(self, limit: float) -> Row:
        """The same row with its estimate of x_0 clamped to [-limit, limit]; `Plan.with_clip` says how.

        Raises:
            ValueError: the row is clamped already, or its slot holds more guidance than the estimate has.
        """
        if math.isfinite(self.store.clamp):
            raise ValueError("clip must be given once: the plan is clipped already")
        if self.guidance_factor != 1.0:
            raise ValueError(
                "clip must be given for estimates, got a row whose slot holds another: its guidance is a factor's"
            )
        a, b = self.preview
        if b == 0:
            return self
        p, q, p2, q2, _ = self.store
        inner = matrix2.total(a, matrix2.product(b, matrix2.total(p2, matrix2.product(q2, p))))
        outer = matrix2.solve(b, matrix2.product(-1.0, a)), matrix2.solve(b, 1.0)
        return replace(self, store=OutputMap(inner, matrix2.product(matrix2.product(b, q2), q), *outer, limit))

    def to_json(self) -> dict[str, Any]:
        """A plain tree of numbers and strings; what is zero, or as it is by itself, is left out."""
        tree = asdict(self)
        for name in ("x", "y"):
            tree[name] = {n: c for n, c in zip(NAMES, tree[name], strict=True) if c}
        tree["store"] = {k: v for k, v in self.store._asdict().items() if v != math.inf}
        for name, own in (("model", 0), ("second", None), ("guidance_factor", 1.0)):
            if tree[name] == own:
                del tree[name]
        return tree

    @classmethod
    def from_json(cls, tree: Any) -> Row:
        """The row that `to_json` described.

        Raises:
            ValueError: the tree is not a row; the message names the field.
        """
        if not isinstance(tree, dict):
            raise ValueError(f"a row must be an object, got {shown(tree)}")
        for name in tree:
            choose("a field", name, cls.__dataclass_fields__)
        for name in ("t", "slot", "x", "y", "levels", "store", "preview"):
            if name not in tree:
                raise ValueError(f"{name} must be given, got none")
        return cls(**{name: read(name, value) for name, value in tree.items()})


def check_numbers(what: str, coefficients: tuple[Coefficient, ...]) -> None:
    """Numbers that float32 can hold.

    Raises:
        ValueError: another type, not finite, or too large.
    """
    for number in matrix2.numbers(coefficients):
        if not (is_number(number) and abs(number) <= LARGEST):
            raise ValueError(f"{what} must be finite float32 numbers, got {shown(number)}")


def read(name: str, value: Any) -> Any:
    """A field of a row, or a plan's prologue, from its JSON.

    Raises:
        ValueError: it has another form, naming it.
    """
    form, convert = _FROM_JSON.get(name, ("", None))
    if convert is None:
        return value
    try:
        return convert(value)
    except ValueError:
        raise
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name} must be {form}, got {shown(value)}") from error


def _form_from_json(name: str, tree: Any) -> tuple[Coefficient, ...]:
    for operand in tree.keys() - set(NAMES):
        choose(f"an operand of {name}", operand, NAMES)
    return tuple(coefficient(tree.get(operand, 0.0)) for operand in NAMES)


def _named_from_json(kind: Any, tree: Any) -> Any:
    for name in tree.keys() - set(kind._fields):
        choose("a coefficient", name, kind._fields)
    return kind(**{name: coefficient(value) for name, value in tree.items()})


def _level_from_json(tree: Any) -> AnyLevel:
    if not isinstance(tree, (list, tuple)) or len(tree) != 2:
        raise TypeError
    alpha, sigma = tree
    if isinstance(alpha, (list, tuple)) or isinstance(sigma, (list, tuple)):
        return PhaseLevel(*(((float(a), float(b)), (float(c), float(d))) for (a, b), (c, d) in (alpha, sigma)))
    return Level(float(alpha), float(sigma))


_FROM_JSON: dict[str, tuple[str, Callable[[Any], Any] | None]] = {
    "x": ("coefficients by operand", partial(_form_from_json, "x")),
    "y": ("coefficients by operand", partial(_form_from_json, "y")),
    "levels": ("three levels [alpha, sigma]", lambda tree: Levels(*map(_level_from_json, tree))),
    "store": ("coefficients by name", partial(_named_from_json, OutputMap)),
    "preview": ("two coefficients", lambda tree: tuple(map(coefficient, tree))),
    "in_scale": ("a coefficient", coefficient),
    "prologue": ("coefficients by name", partial(_named_from_json, Prologue)),
}
