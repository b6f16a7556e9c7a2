"""`PlanScheduler`: every solver as a scheduler of diffusers, for its pipelines as they are; and `accelerate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pndm_fast.integrations.outputs import ESTIMATING, EstimatingOutput
from pndm_fast.integrations.settings import AS_SAVED, check_idle, check_keys, check_settings, named, options_of
from pndm_fast.integrations.stepping import Prepared, Stepper
from pndm_fast.plan.coordinates import unscaled
from pndm_fast.plan.levels import Level
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.schedule import Schedule
from pndm_fast.row.device import upload
from pndm_fast.solvers import SOLVER_INFO
from pndm_fast.solvers.foreign import drawn, step_eta
from pndm_fast.solvers.like import check_begin, check_like, config_of, plan_like, schedule_of

if TYPE_CHECKING:
    from pndm_fast.integrations.accelerate import accelerate as accelerate

KEPT = 16  # plans of the loops before
LISTS = ("timesteps", "sigmas")
_IN_SIGMA = (  # whose samples are x_0 + sigma/alpha eps
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("LMSDiscreteScheduler", "DPMSolverSDEScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)
_STRIDED = ("PNDMScheduler", "DDIMScheduler", "DDIMInverseScheduler")  # add_noise goes by the time, not by the state


def __getattr__(name: str) -> Any:
    if name == "accelerate":  # it is built on what is here
        from pndm_fast.integrations.accelerate import accelerate

        return accelerate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def normals_like(like: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Standard normals of a tensor's form: the numbers that diffusers draws, from torch's own generator without one."""
    if generator is None or (isinstance(generator, torch.Generator) and generator.device == like.device):
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    # the same numbers, from elsewhere or one generator a sample
    drawn: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return drawn


class PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # both have config_name
    """A solver of ours, or the plan of one of diffusers' schedulers, in a pipeline.

    `pipe.scheduler = PlanScheduler.from_config(pipe.scheduler.config, solver="unipc")`. The configuration is kept as it
    was, so that pipelines find in it what they read, and the way back is `EulerDiscreteScheduler.from_config(config)`.

    `step` runs one row in float32 and reads nothing from the device. With a solver samples are alpha x_0 + sigma eps;
    without one those of the scheduler that it stands for, which are x_0 + sigma/alpha eps of Euler's and its like. No
    gradients pass through it. A copy begins its loop anew.

    Attributes:
        timesteps: what the network is told, for each call: int64 where all are whole, else float32.
        sigmas: sigma / alpha at each call and at the end; on flow sigma. float32, on the CPU.
        order: network calls for a step of the grid, where each step has as many; else 1.
        init_noise_sigma: what pipelines multiply their normals by.
    """

    _compatibles = [one.name for one in KarrasDiffusionSchedulers]

    def __init__(
        self, config: Mapping[str, Any], solver: str | None = None, spacing: str | None = None, **options: Any
    ) -> None:
        config = named(config, solver)
        like = config_of(config)["_class_name"]
        settings = {"like": like, "solver": solver, "spacing": spacing, "options": options}
        check_settings(solver, spacing, options)
        register: Any = self.register_to_config  # which has no types
        register(**{**config, "_class_name": type(self).__name__, "_plan": settings})
        check_like(self)
        self._in_sigma = solver is None and like in _IN_SIGMA
        self._estimates = like in ESTIMATING
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(self) - 1, -1, -1)
        self._asked: dict[str, Any] = {}
        self._original: int | None = None
        self._prepared: dict[Any, Prepared] = {}
        self._prepared_for: Any = None
        self._plan: Plan | None = None
        self._begin_index: int | None = None
        self._run: Stepper | None = None
        self._idle: Stepper | None = None
        self._first, self._eta, self._consistency, self._flow = 0, 0.0, False, False
        self._given: float | None = None  # eta, as steps are given it
        self._levels: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_config(  # type: ignore[override]
        cls,
        config: Mapping[str, Any],
        solver: str | None = AS_SAVED,
        *,
        spacing: str | None = None,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """A scheduler from another's configuration, or from a saved one of its own.

        Args:
            config: `pipe.scheduler.config`, or `pipe.scheduler`.
            solver: a name of `SOLVERS`; None does what the configuration's own class does (`plan_like`).
            spacing: the solver's grid; default its own, or the sigmas that a flow pipeline gives.
            options: the solver's, and clip, final, t_min and integer_times of `make_plan`; else new values of the
                configuration's own keys, such as flow_shift=3.0. The configuration's clip_sample goes with no solver.

        Raises:
            TypeError, ValueError: naming what is unknown, or what no plan does.
        """
        given: Any = config
        if isinstance(given, SchedulerMixin):
            config = {**getattr(given, "config"), "_class_name": type(given).__name__}  # noqa: B009  # untyped
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be that of a scheduler, got {type(config).__name__}")
        saved = config_of(config).get("_plan") if "_class_name" in config else None
        kept: dict[str, Any] = {}
        if solver == AS_SAVED:
            solver = None
            if isinstance(saved, Mapping):
                solver, kept = saved["solver"], dict(saved["options"])
                spacing = saved["spacing"] if spacing is None else spacing
        known = options_of(solver)
        own = {name: value for name, value in options.items() if name in known}
        changed = {name: value for name, value in options.items() if name not in known}
        check_keys(changed, config, solver, known)
        made = cls({**config, **changed}, solver, spacing, **{**kept, **own})
        return (made, {}) if return_unused_kwargs else made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None, "_idle": None}

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    @property
    def step_index(self) -> int | None:
        """Of the call that comes next; None before the first."""
        return None if self._run is None else self._first + self._run.index

    @property
    def begin_index(self) -> int | None:
        """Of the first call, as the pipeline said."""
        return self._begin_index

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the pipeline's first sample."""
        return 1.0 if self._plan is None else float(self._plan.prologue.p0)  # type: ignore[arg-type]

    @property
    def order(self) -> int:
        """Calls for a step, see above."""
        if self._plan is None:
            return 1
        info = SOLVER_INFO.get(self._plan.solver.removesuffix(" (diffusers)"))
        return info.calls_per_step if info is not None and info.extra_calls <= 0 else 1

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
    ) -> None:
        """Make the plan of a loop: it must be called before each.

        Args:
            num_inference_steps: how many steps.
            device: of `timesteps`.
            timesteps, sigmas: the grid itself, see `plan_like`; mu: of use_dynamic_shifting.
            original_inference_steps: of LCMScheduler, in place of its configuration's.

        Raises:
            TypeError, ValueError: naming what no plan does.
        """
        for name, given in (("timesteps", timesteps), ("sigmas", sigmas)):
            if given is not None and num_inference_steps not in (None, len(given)):
                raise ValueError(
                    f"{name} must be as many as num_inference_steps, {num_inference_steps}, got {len(given)}"
                )
        settings = self.config["_plan"]
        if original_inference_steps is not None and (settings["solver"] or settings["like"] != "LCMScheduler"):
            raise ValueError(f"original_inference_steps must be of LCMScheduler, got {original_inference_steps}")
        self._original = original_inference_steps
        self._asked = {"steps": num_inference_steps, "mu": mu, "timesteps": timesteps, "sigmas": sigmas}
        self._plan = plan = self._prepare(0, 0.0).plan
        whole = all(t == int(t) for t in plan.times)
        told = [int(t) for t in plan.times] if whole else plan.times
        self.timesteps = torch.tensor(told, dtype=torch.int64 if whole else torch.float32).to(device)
        at = [row.levels.call.position for row in plan] + [plan.rows[-1].levels.y.position]
        sigmas = [s if self._flow else s / a if a else math.inf for a, s in at]
        self.sigmas = torch.tensor(sigmas, dtype=torch.float32)
        self.num_inference_steps, self._consistency = plan.steps, plan.solver.startswith("lcm")
        self._begin_index = self._run = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The loop's first call: the plan is then one of the calls from there on.

        Raises:
            ValueError: the solver has no such plan.
        """
        if self._plan is not None:
            if begin_index == self._plan.nfe:
                raise ValueError(f"begin_index must leave a call, got {begin_index}: is strength too low?")
            check_begin(begin_index, self._plan.nfe)
            self._prepare(begin_index, 0.0)
        self._begin_index, self._run = begin_index, None

    def _prepare(self, first: int, eta: float) -> Prepared:
        """The plan of the calls from `first` on: made once, as long as nothing else is asked."""
        if not self._asked:
            raise ValueError("set_timesteps must be called before step")
        if self._prepared_for is not self.config:  # pipelines may put another there
            self._follow_config()
        if len(self._prepared) >= KEPT:
            self._prepared.clear()
        lists = (
            (name, None if v is None else tuple(map(float, v))) for name, v in self._asked.items() if name in LISTS
        )
        key = self._asked["steps"], self._asked["mu"], self._original, *lists, first, eta
        found = self._prepared.get(key)
        if found is None:  # others may share these, and clear them
            original = {} if self._original is None else {"original_inference_steps": self._original}
            plan = plan_like({**self.config, **original}, **self._asked, begin=first, eta=eta)
            plan = unscaled(plan) if self._in_sigma else plan
            found = self._prepared[key] = Prepared.of(plan, drawn(self.config, plan, eta))
        return found

    def _follow_config(self) -> None:
        self._prepared, self._prepared_for, self._levels = {}, self.config, None
        self._flow = schedule_of(self.config, mu=1.0)[0].scale == "flow"

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input: the sample, of schedulers that keep unscaled data alpha times the sample."""
        plan = self._plan
        if plan is None or plan.unscaled:
            return sample
        index = self.step_index
        if index is None:
            index = self._index_of(timestep) if self._begin_index is None else self._begin_index
        return sample * plan.rows[min(index, plan.nfe - 1)].in_scale  # type: ignore[return-value]

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> SchedulerOutput | LCMSchedulerOutput | tuple[Tensor, ...]:
        """The sample at the next time: one row of the plan; of "lcm" the data before it is noised again too.

        Where the scheduler that was taken over has `pred_original_sample` in its output, so has this one's, made when
        it is asked for: the estimate of x_0 of that call. A tuple, which pipelines ask for, has the sample alone.

        Args:
            model_output: the network's, [B, ...]; of one that learned its variance too the first half of the channels.
            timestep: one of `timesteps`. It says where a loop begins if set_begin_index was not called.
            sample: what the last call returned. Another, such as a blend, is taken as the state where the plan can go
                on from one.
            eta: of DDIM and TCD, the same at each call; without it what theirs have then, 0 and 0.3.
            generator: of the noise, one or one for each sample; without it torch's global one.
            others: of other schedulers, at the values that change nothing.

        Raises:
            TypeError, ValueError: naming what does not fit.
        """
        run = self._run
        if run is None or others or eta != self._given:
            run = self._begin(timestep, sample, eta, others)
        out = run.step(model_output, sample, normals_like, generator)
        if return_dict and self._estimates:
            return EstimatingOutput.of(out, run.plan.rows[run.index - 1], model_output, sample)
        if self._consistency or return_dict:
            return self._result(out, run.denoised(out.dtype) if self._consistency else None, return_dict)
        return (out,)

    def _result(
        self, out: Tensor, denoised: Tensor | None, return_dict: bool
    ) -> SchedulerOutput | LCMSchedulerOutput | tuple[Tensor, ...]:
        """What `step` returns; `denoised` is of consistency models."""
        if denoised is not None:
            return LCMSchedulerOutput(prev_sample=out, denoised=denoised) if return_dict else (out, denoised)
        if not return_dict:
            return (out,)
        return SchedulerOutput(prev_sample=out)

    def _begin(self, timestep: Any, sample: Tensor, given: float | None, others: Mapping[str, Any]) -> Stepper:
        """The stepper of the loop that this call begins, or is in."""
        check_idle(others)
        eta = step_eta(self.config["_plan"], given)
        if self._run is None:
            self._first = self._index_of(timestep) if self._begin_index is None else self._begin_index
            prepared = self._prepare(self._first, eta)
            if self._idle is None or not self._idle.fits(prepared, sample):
                self._idle = Stepper(prepared, sample)
            else:
                self._idle.restart()
            self._run, self._eta = self._idle, eta
        elif eta != self._eta:
            raise ValueError(f"eta must be the same in all of a loop, {self._eta}, got {eta}")
        self._given = given
        return self._run

    def _index_of(self, timestep: Any) -> int:
        """Which of our times it is; a view of `timesteps`, as loops give, is not read."""
        if isinstance(timestep, Tensor):
            if timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr():
                return int(timestep.storage_offset() - self.timesteps.storage_offset())
            timestep = float(timestep)
        at = [i for i, t in enumerate(self.timesteps.tolist()) if t == timestep]
        if not at:
            raise ValueError(f"timestep must be one of timesteps, got {timestep}")
        return at[0]

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma eps: in a pipeline's loop at the call that comes next, else at the times given.

        Args:
            timesteps: [B], one for each sample; training times are whole.
        """
        alpha, sigma = self._levels_at(timesteps, original_samples)
        if self._in_sigma:
            alpha, sigma = 1.0, sigma / alpha
        noisy: Tensor = alpha * original_samples + sigma * noise
        return noisy

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """The same, as flow pipelines call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a network that predicts v says of x_0 = sample: alpha eps - sigma x_0; on flow eps - x_0."""
        if self._schedule().scale == "flow":
            return noise - sample
        alpha, sigma = self._trained(timesteps, sample)
        return alpha * noise - sigma * sample

    def _schedule(self) -> Schedule:
        return schedule_of(self.config, mu=self._asked.get("mu"))[0]

    def _levels_at(self, timesteps: Tensor, like: Tensor) -> tuple[Any, Any]:
        if self._begin_index is None or self._plan is None:
            return self._trained(timesteps, like)
        index = self.step_index
        return self._level(self._begin_index if index is None else index)

    def _level(self, index: int) -> Level:
        """Of the sample before a call, or after the last."""
        assert self._plan is not None
        if index == self._plan.nfe:
            return self._plan.rows[-1].levels.y.position
        settings, row = self.config["_plan"], self._plan.rows[index]
        if settings["solver"] is None and settings["like"] in _STRIDED:
            schedule = self._schedule()
            return Level(float(schedule.alpha(row.t)), float(schedule.sigma(row.t)))
        return row.levels.call.position

    def _of_loop(self, timesteps: Tensor, schedule: Schedule) -> Tensor:
        """sigma of flow at times; at those of the loop, which may be rounded, the loop's own."""
        sigma = timesteps / schedule.last
        if self._plan is None:
            return sigma
        here = timesteps[:, None] == self.timesteps.to(timesteps)
        return torch.where(here.any(1), self.sigmas.to(sigma)[here.int().argmax(1)], sigma)

    def _trained(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of the schedule at times, shaped for the samples, without reading the times."""
        ones = [-1] + [1] * (like.dim() - 1)
        schedule = self._schedule()
        if not schedule.discrete:
            sigma = self._of_loop(timesteps.to(like.device, torch.float32), schedule).view(ones)
            return (1 - sigma).to(like.dtype), sigma.to(like.dtype)
        if timesteps.is_floating_point():
            raise ValueError(f"timesteps must be whole numbers outside of a loop, got {timesteps.dtype}")
        if self._levels is None or self._levels[0].device != like.device:  # as the config says
            every = range(len(self))
            tables = schedule.alpha(every), schedule.sigma(every)
            self._levels = tuple(upload(table, like.device, torch.float32) for table in tables)  # type: ignore[assignment]
        assert self._levels is not None
        alpha, sigma = (table[timesteps.to(like.device)].to(like.dtype).view(ones) for table in self._levels)
        return alpha, sigma
