"""Noise schedules in float64: x_t = alpha_t x_0 + sigma_t eps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pndm_fast.plan.checks import check_type
from pndm_fast.plan.curves import (
    INTERPOLATIONS,
    Array,
    Curve,
    Flow,
    LinearBeta,
    Nodes,
    Sigma,
    Trigonometric,
    _Preserving,
)
from pndm_fast.plan.hints import in_words

LEAST_ALPHA_BAR = 2.0**-24  # diffusers' stand-in for alpha-bar = 0
_DISCRETE = {"num_train_timesteps": "T", "num_timesteps": "T", "timesteps": "T", "linear_start": "beta_start"}
_DISCRETE |= {"linear_end": "beta_end", "beta_min": "beta_start", "beta_max": "beta_end"}


@dataclass(frozen=True, repr=False)
class Schedule:
    """Noise levels against time.

    Discrete schedules interpolate log alpha-bar linearly between the training times, or what `interpolate` names;
    t = -1 is alpha-bar = 1 (a network at integer t was trained at alpha_bar[t]). The others have closed forms. `time`
    and `time_at` are exact inverses, so a time and its coefficients never disagree.

    A value, equal where every field is, that hashes by all of them.

    Attributes:
        first: the time of sigma = 0: -1 for discrete schedules, 0 for continuous ones.
        last: the noisiest time that grids use: T - 1, 1, or sigma_max.
        floor: the latest time at which grids of uniform noise call the network.
        discrete: whether times count training steps.
        spacing: the grid to take where a schedule, not a solver, decides; or None.
        shift: of flow schedules: grids uniform in u become shift u / (1 + (shift - 1) u).
        sigma_data: of networks with EDM's preconditioning, the data's standard deviation.
    """

    name: str
    first: float
    last: float
    floor: float
    discrete: bool
    curve: Curve
    spacing: str | None = None
    shift: float = 1.0
    sigma_data: float = 0.5

    def __repr__(self) -> str:
        kind = "training times" if self.discrete else "times"
        shift = "" if self.shift == 1 else f", shift {self.shift:g}"
        return f"<Schedule {self.name[:60]}: {self.scale}, {kind} {self.last:g} to {self.first:g}{shift}>"

    @property
    def scale(self) -> str:
        """vp: alpha^2 + sigma^2 = 1; sigma: alpha = 1; flow: alpha + sigma = 1."""
        return self.curve.scale

    @classmethod
    @in_words("Schedule.linear", **_DISCRETE)
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """beta linear in t. Ho et al. 2020, arXiv:2006.11239, section 4."""
        return cls.from_betas(_betas("linear", T, beta_start, beta_end), name="linear")

    @classmethod
    @in_words("Schedule.scaled_linear", **_DISCRETE)
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
        """sqrt(beta) linear in t: latent diffusion. Rombach et al. 2022, arXiv:2112.10752, released configuration."""
        return cls.from_betas(_betas("scaled_linear", T, beta_start, beta_end), name="scaled-linear")

    @classmethod
    @in_words("Schedule.cosine", **_DISCRETE)
    def cosine(cls, T: int = 1000) -> Schedule:
        """beta_i = min(.999, 1 - f((i + 1)/T) / f(i/T)), f(u) = cos^2(pi/2 (u + .008)/1.008).

        Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
        """
        _check_length(T)
        u = np.arange(T + 1) / T
        f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls.from_betas(np.minimum(0.999, 1 - f[1:] / f[:-1]), name="cosine")

    @classmethod
    @in_words("Schedule.sigmoid", **_DISCRETE)
    def sigmoid(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """beta = beta_start + (beta_end - beta_start) s(u), s the logistic function of u = -6 .. 6.

        Xu et al. 2022, arXiv:2203.02923 (GeoDiff), released configuration.
        """
        return cls.from_betas(_betas("sigmoid", T, beta_start, beta_end), name="sigmoid")

    @classmethod
    @in_words("Schedule.from_betas", **{"trained_betas": "betas"})
    def from_betas(cls, betas: ArrayLike, *, name: str = "betas") -> Schedule:
        """alpha_bar[t] = prod_{i <= t} (1 - beta_i); the last beta may be 1: zero terminal SNR."""
        values = _vector("betas", betas)
        _check_inside("betas", values, 1, betas)
        kept = np.cumprod(1 - values)
        gone = np.flatnonzero(kept[:-1] == 0)
        if gone.size:
            raise ValueError(f"betas must leave some signal at all times but the last, got none at index {gone[0]}")
        return cls.from_alphas_cumprod(kept, name=name)

    @classmethod
    @in_words("Schedule.from_alphas_cumprod", **{"alphas_bar": "alphas_cumprod", "alpha_bar": "alphas_cumprod"})
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike, *, name: str = "alphas_cumprod") -> Schedule:
        """alpha_bar[t] = alpha_t^2, decreasing, one value for each training time; the last may be 0."""
        values = _vector("alphas_cumprod", alphas_cumprod)
        _check_inside("alphas_cumprod", values, 0, alphas_cumprod)
        rising = np.flatnonzero(np.diff(values) >= 0)
        if rising.size:
            i = int(rising[0])
            raise ValueError(
                f"alphas_cumprod must decrease, got {values[i]} then {values[i + 1]} at index {i + 1}"
                f"{_precision(alphas_cumprod)}{_stand_in(values, i + 1)}"
            )
        with np.errstate(divide="ignore"):
            nodes = np.log(np.concatenate([[1.0], values]))
        return cls(name, -1.0, float(len(values) - 1), 0.0, True, Nodes(-1.0, nodes))

    @classmethod
    @in_words(
        "Schedule.vp", **{"beta_0": "beta_min", "beta_1": "beta_max", "beta_start": "beta_min", "beta_end": "beta_max"}
    )
    def vp(cls, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
        """log alpha-bar(t) = -(beta_min t + (beta_max - beta_min) t^2 / 2), t in [0, 1].

        Song et al. 2021, arXiv:2011.13456, eq. 33. A fit to given noise levels may have a negative beta_min, such as
        -0.0048 for 0.002 to 80: times then begin where sigma = 0, at -2 beta_min / (beta_max - beta_min).
        """
        _check_types(beta_min=beta_min, beta_max=beta_max)
        if not (-math.inf < beta_min <= beta_max < math.inf and beta_min + beta_max > 0):
            raise ValueError(
                "beta_min and beta_max must be beta_min <= beta_max with alpha below 1 at t = 1, that is "
                f"beta_min + beta_max > 0, got {beta_min}, {beta_max}"
            )
        curve = LinearBeta(float(beta_min), float(beta_max))
        first = curve.start
        return cls("vp", first, 1.0, max(1e-3, first + 1e-4 * (1 - first)), False, curve)

    @classmethod
    def trigflow(cls) -> Schedule:
        """alpha = cos t, sigma = sin t, from pi/2 down. Lu & Song 2024, arXiv:2410.11081, section 3.

        In units of the data's deviation, so that x_0 = cos t x - sin t F: its networks predict "v".
        """
        return cls("trigflow", 0.0, math.pi / 2, 1e-3, False, Trigonometric(), "trailing")

    @classmethod
    @in_words("Schedule.edm")
    def edm(cls, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> Schedule:
        """alpha = 1, sigma = t, from sigma_max down. Karras et al. 2022, arXiv:2206.00364, table 1.

        A network that is called as D(x, sigma) predicts "x0". prediction="edm" is for the raw network F inside it:
        D = c_skip x + c_out F(c_in x, c_noise), c_noise = log(sigma) / 4; sigma_data is of that alone.

        DPM-Solver++ as ComfyUI and SD3.5 run it on flow networks takes the flow's sigma for this one's: it is
        make_plan("dpmpp-2m", Schedule.edm(0.001, 1.0), sigmas=those of the flow, prediction="x0"), with x - sigma
        flow(x, sigma) as the network. On `Schedule.flow` the same solver is exact in the flow's own log-SNR.
        """
        _check_types(sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data)
        if not 0 < sigma_min < sigma_max < math.inf or not 0 < sigma_data < math.inf:
            raise ValueError(
                "sigma_min, sigma_max and sigma_data must be 0 < sigma_min < sigma_max and 0 < sigma_data, "
                f"got {sigma_min}, {sigma_max}, {sigma_data}"
            )
        return cls(
            "edm", 0.0, float(sigma_max), float(sigma_min), False, Sigma(), "karras", sigma_data=float(sigma_data)
        )

    @classmethod
    @in_words("Schedule.flow", **{"flow_shift": "shift", "time_shift": "shift", "num_train_timesteps": "T"})
    def flow(cls, shift: float = 1.0, T: float = 1.0) -> Schedule:
        """alpha = 1 - t, sigma = t. Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747.

        At the first time alpha = 0: eps says nothing of x_0 there and log-SNR has no end. Solvers that combine eps
        (deis, dpm-solver, unipc on eps) take the first step by x_0, which is the limit of theirs, and leave that call
        out of their history; solvers whose stages stand in log-SNR (dpmpp-sde, res-2s, seeds-2, dpm-fast and their
        like) and grids in it, logsnr and dpm-fast, begin at shift (1 - 1e-4).

        Args:
            shift: times spread as shift u / (1 + (shift - 1) u). Esser et al. 2024, arXiv:2403.03206, eq. 23. Grids by
                `spacing` are; times and sigmas that are given stay as they are. Networks that are shifted by the size
                of a sample have exp(mu): `pf.flow_mu`, `pf.flux2_mu`.
            T: the network's time of pure noise; 1000 for networks that are called with 1000 t.
        """
        _check_types(shift=shift, T=T)
        for name, value in (("shift", shift), ("T", T)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        return cls("flow", 0.0, float(T), 1e-3 * T, False, Flow(float(T)), "trailing", shift=float(shift))

    @classmethod
    def from_levels(cls, alphas: ArrayLike, sigmas: ArrayLike, *, name: str = "levels") -> Schedule:
        """A variance-preserving schedule of the given levels, noisiest first: level i of n + 1 is at time n - i.

        Its plans reproduce any grid, whatever times the network is told there. The noise falls, or stays, from level to
        level, and of equal ones a grid of `make_plan` visits one; alpha = 0 may come first alone, sigma = 0 last alone.

        Raises:
            TypeError, ValueError: naming the level that is none, or that is noisier than the one before.
        """
        a, s = _vector("alphas", alphas), _vector("sigmas", sigmas)
        if a.shape != s.shape or len(a) < 2:
            raise ValueError(f"alphas and sigmas must be as many, two or more, got {a.size} and {s.size}")
        _check_levels(a, s)
        with np.errstate(divide="ignore"):
            nodes = np.where(a > s, np.log1p(-s * s), 2 * np.log(a))
        rising = np.flatnonzero(nodes[1:] < nodes[:-1] + 1e-12 * nodes[:-1])  # equal to rounding is equal
        if rising.size:
            i = int(rising[0])
            raise ValueError(f"sigmas must decrease, got {s[i]} then {s[i + 1]} at index {i + 1}")
        return cls(name, 0.0, float(len(a) - 1), 1.0, True, Nodes(0.0, nodes[::-1]))

    def interpolate(self, interp: str) -> Schedule:
        """This discrete schedule with another quantity linear between its times: log_abar, sigma or log_sigma.

        sigma here is sigma / alpha, as where noise is added to unscaled data.
        """
        if interp not in INTERPOLATIONS or not isinstance(self.curve, Nodes):
            raise ValueError(
                f"interp must be one of {', '.join(INTERPOLATIONS)}, of a discrete schedule, "
                f"got {interp!r} for {self.name}"
            )
        return replace(self, curve=replace(self.curve, interp=interp))

    def zero_terminal_snr(self) -> Schedule:
        """alpha shifted and scaled so that it ends at 0 and starts where it was. Lin et al. 2023, arXiv:2305.08891.

        For networks trained so; their prediction is v or x0: at alpha = 0, eps says nothing of x_0.
        """
        if not isinstance(self.curve, Nodes):
            raise ValueError(f"zero_terminal_snr must be of a discrete schedule, got {self.name}")
        alpha = np.exp(self.curve.values[1:] / 2)
        if len(alpha) < 2:
            raise ValueError(f"zero_terminal_snr must be of two training times or more, got one of {self.name}")
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        made = Schedule.from_alphas_cumprod(alpha * alpha, name=f"{self.name}, zero terminal SNR")
        return made.interpolate(self.curve.interp)

    def inside(self, t: ArrayLike) -> Array:
        """The times as an array.

        Raises:
            ValueError: one is outside [first, last].
        """
        time = np.asarray(t, dtype=np.float64)
        most = math.inf if self.scale == "sigma" else self.last  # any noise may be added to unscaled data
        outside = time[~((time >= self.first) & (time <= most))]
        if outside.size:
            raise ValueError(f"times must be in [{self.first:g}, {most:g}], got {outside.flat[0]:g}")
        return time

    def log_alpha_bar(self, t: ArrayLike) -> Any:
        """log alpha_t^2, float64. Times outside [first, last] are an error."""
        return self.curve.log_alpha_bar(self.inside(t))

    def alpha(self, t: ArrayLike) -> Any:
        """alpha_t, float64."""
        return np.exp(self.log_alpha_bar(t) / 2)

    def sigma(self, t: ArrayLike) -> Any:
        """sigma_t, float64, without cancellation near t = first."""
        return self.curve.sigma(self.inside(t))

    def lam(self, t: ArrayLike) -> Any:
        """log(alpha_t / sigma_t), float64; infinite where sigma = 0."""
        with np.errstate(divide="ignore"):
            return self.log_alpha_bar(t) / 2 - np.log(self.sigma(t))

    def log_alpha_slope(self, t: float) -> float:
        """d log alpha / dt at t; of a discrete schedule, on the interval that ends at t."""
        return self.curve.slope(t)

    def time(self, log_alpha_bar: ArrayLike) -> Any:
        """The time at which log alpha-bar has the given value: the inverse of `log_alpha_bar`."""
        value = np.asarray(log_alpha_bar, dtype=np.float64)
        if not isinstance(self.curve, _Preserving):
            raise ValueError(f"log alpha-bar must be of a variance-preserving schedule, got {self.name}")
        if not np.all((value <= 0) & (value >= self.log_alpha_bar(self.last))):
            raise ValueError(f"log alpha-bar must be in [{self.log_alpha_bar(self.last)}, 0], got {log_alpha_bar!r}")
        return self.curve.inverse(value)

    def time_at(self, lam: ArrayLike) -> Any:
        """The time at which log(alpha / sigma) is lam: the inverse of `lam`; beyond an end of the curve, that end."""
        time = self.curve.time(np.asarray(lam, dtype=np.float64))
        return np.clip(time, self.first, math.inf if self.scale == "sigma" else self.last)[()]


def _check_types(**values: Any) -> None:
    for name, value in values.items():
        check_type(name, value, float)


def _check_length(T: int) -> None:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or not 1 <= T <= 10**6:
        raise ValueError(f"T must be an integer in [1, 1000000], got {T!r}")


def _betas(kind: str, T: int, start: float, end: float) -> Array:
    _check_length(T)
    _check_types(beta_start=start, beta_end=end)
    if not 0 < start <= end <= 1:
        raise ValueError(f"beta_start and beta_end must be 0 < beta_start <= beta_end <= 1, got {start}, {end}")
    if kind == "linear":
        return np.linspace(start, end, T)
    if kind == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, T)))
    return np.linspace(np.sqrt(start), np.sqrt(end), T) ** 2


_PARTS = (("of", "dtype"), ("on", "device"))  # of an array or a tensor, for a message


def _vector(name: str, values: Any) -> Array:
    kind = type(values).__name__
    kind += "".join(f" {word} {getattr(values, part)}" for word, part in _PARTS if hasattr(values, part))
    try:
        if hasattr(values, "detach"):  # a tensor, on any device and of any dtype; this room knows no torch
            values = np.asarray(values.detach().tolist())
        array = np.asarray(values)
        if array.dtype.kind in "bcmMSU" or array.dtype.kind == "O" and array.ndim == 0:
            raise TypeError("no real numbers")
        array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a sequence of numbers, got {kind}") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {array.shape}")
    return array


def _check_levels(alphas: Array, sigmas: Array) -> None:
    """alpha^2 + sigma^2 = 1, to float32's rounding; neither 0 but alpha first and sigma last."""
    for name, values, may_vanish in (("alphas", alphas, 0), ("sigmas", sigmas, len(sigmas) - 1)):
        least = np.where(np.arange(len(values)) == may_vanish, -1.0, 0.0)
        bad = np.flatnonzero(~((values >= 0) & (values > least) & (values < math.inf)))
        if bad.size:
            i = int(bad[0])
            where = "first" if may_vanish == 0 else "last"
            raise ValueError(f"{name} must be positive ({where}: or 0) and finite, got {values[i]} at index {i}")
    with np.errstate(over="ignore"):
        off = np.flatnonzero(~(np.abs(alphas**2 + sigmas**2 - 1) <= 1e-6))
    if off.size:
        i = int(off[0])
        raise ValueError(
            f"alphas and sigmas must have alpha^2 + sigma^2 = 1, got {alphas[i]} and {sigmas[i]} at index {i}"
        )


def _check_inside(name: str, values: Array, last: int, given: Any) -> None:
    """Between 0 and 1; the last of several may be `last`, where no signal is left."""
    bad = np.flatnonzero(~((values > 0) & (values < 1)))
    if bad.size == 1 and bad[0] == len(values) - 1 > 0 and values[-1] == last:
        return
    if bad.size:
        raise ValueError(
            f"{name} must be in (0, 1) (the last: or {last}), got {values[bad[0]]} at index {bad[0]}{_precision(given)}"
        )


def _stand_in(values: Array, index: int) -> str:
    """That a last alpha-bar above the one before is what diffusers writes in place of 0."""
    last = index == len(values) - 1 and values[index] == LEAST_ALPHA_BAR
    return ", diffusers' stand-in for zero terminal SNR: give 0 in its place" if last else ""


def _precision(values: Any) -> str:
    """What a table of few digits may have lost."""
    few = getattr(getattr(values, "dtype", None), "itemsize", 8) < 4
    return f": {values.dtype} has too few digits for this table, give it in float32" if few else ""
