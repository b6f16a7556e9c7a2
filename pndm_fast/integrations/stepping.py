"""A plan whose network is called by somebody else's loop: one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pndm_fast.loop.network import prediction
from pndm_fast.plan.plan import Plan
from pndm_fast.row.backends import choose_backend
from pndm_fast.row.device import upload
from pndm_fast.row.layout import unflatten
from pndm_fast.row.registers import FLOATS, NEVER, allocate
from pndm_fast.row.table import Table, build

Draw = Callable[[Tensor, Any], Tensor]
"""draw(like, generator): standard normals of a tensor's shape, dtype and device."""


class Prepared(NamedTuple):
    """A plan and its table on the host.

    Attributes:
        draws: of which rows normals are drawn, those of a row without noise for what the generator gives next.
    """

    plan: Plan
    table: Table
    draws: tuple[bool, ...]

    @classmethod
    def of(cls, plan: Plan, draws: tuple[bool, ...]) -> Prepared:
        """Of a plan of numbers, with a prologue that adds nothing.

        Raises:
            ValueError: it has parts beside its rows, or is guided in itself.
        """
        p = plan.prologue
        if plan.components > 1 or p.c0 or p.a0 != 1 or plan.guided or plan.has_factors:
            raise ValueError(f"solver must be all in its rows, of one part and unguided, got {plan.solver}")
        return cls(plan, build([plan], torch.float32), draws)


class Stepper:
    """The registers of loops over a plan's rows, one at a time, whose samples are of one shape, on one device.

    The state is float32; the network's input is the caller's to scale. No row reads anything on the host; the table was
    uploaded when the stepper was made.

    Args:
        sample: such as will come, [B, ...].

    Attributes:
        index: of the row that comes next.
    """

    def __init__(self, prepared: Prepared, sample: Tensor) -> None:
        plan = prepared.plan
        if not sample.is_floating_point() or sample.dim() < 2:
            raise ValueError(f"sample must be floating-point [B, ...], got {sample.dtype} {tuple(sample.shape)}")
        self.prepared, self.plan, self.shape, self.device = prepared, plan, sample.shape, sample.device
        self._count, self._noisy, self._draws = plan.nfe, plan.noisy, prepared.draws
        with torch.inference_mode(False), torch.no_grad():
            self._table = upload(prepared.table.data, sample.device)
            batch, n = len(sample), sample[0].numel()
            self._registers = r = allocate(batch, n, plan.n_slots, device=sample.device)
            r.seeds.zero_()
            shape = tuple(sample.shape[1:])
            self._x, self._y = (unflatten(register[:, :n], shape, 1) for register in (r.x, r.y))
        self._dtype: torch.dtype | None = None
        self._asked: torch.dtype | None = None
        self._positions = [row.levels.y.position.alpha for row in plan]
        self.restart()

    def fits(self, prepared: Prepared, sample: Tensor) -> bool:
        """Whether a loop over that plan may use these registers."""
        return prepared is self.prepared and sample.shape == self.shape and sample.device == self.device

    def restart(self) -> None:
        """Begin another loop."""
        r = self._registers
        r.row.zero_()
        r.first_bad.fill_(NEVER)
        r.active.fill_(len(r.row))
        self.index = 0
        self._out: Tensor | None = None
        self._generator: Any = NEVER  # of which it is known whether it draws where the noise is

    def step(self, output: Tensor, sample: Tensor, draw: Draw, generator: Any = None) -> Tensor:
        """The sample after the next row, in the dtype of `sample`, a fresh tensor.

        Args:
            output: what the network said of `sample`.
            sample: what the last step returned; another is taken as the state, where the plan can go on from one.
            draw: called where normals are drawn, unless torch draws the same from the generator into our buffer.
            generator: of the noise, None for torch's own.

        Raises:
            TypeError, ValueError: naming what does not fit, or that no row is left.
        """
        i = self.index
        if i == self._count:
            raise ValueError(
                f"set_timesteps must be called before each loop: all {i} calls of {self.plan.solver} were made"
            )
        if sample is not self._out or sample._version:  # a fresh tensor's is 0
            self._take(sample, i)
        if output.dtype is not self._dtype or output.shape != self.shape or output.requires_grad:
            output = self._fitted(output, sample)
        if not output.is_contiguous():
            output = output.contiguous()
        z = self._noise(draw, generator) if self._draws[i] else None
        self._row(output, None, z if self._noisy[i] else None)
        self.index = i + 1
        if torch.is_inference_mode_enabled():  # whose tensors count no changes
            with torch.inference_mode(False):
                out = self._copy()
        else:
            out = self._copy()
        self._out = out
        return out

    def _noise(self, draw: Draw, generator: Any) -> Tensor:
        """Normals for the next row, [B, n]."""
        if generator is not self._generator:
            here = generator is None or (isinstance(generator, torch.Generator) and generator.device == self.device)
            self._generator, self._local = generator, here
        drawn = self._drawn.normal_(generator=generator) if self._local else draw(self._drawn, generator)
        if drawn is not self._z:
            self._z.copy_(drawn)
        return self._flat

    def denoised(self, dtype: torch.dtype) -> Tensor:
        """The state after the last row less its noise, as data: of consistency models what was noised again."""
        i = self.index - 1
        alpha = self._positions[i]
        if not self._noisy[i]:
            return (self._y / alpha).to(dtype)
        weight: Any = self.plan.rows[i].y[-1]  # a number: the plan has one component
        return torch.sub(self._y, self._z, alpha=weight).div_(alpha).to(dtype)

    def _take(self, sample: Tensor, i: int) -> None:
        """Another state in place of ours."""
        if sample.shape != self.shape or sample.device != self.device:
            raise ValueError(
                f"sample must be {tuple(self.shape)} on {self.device} as before, until set_timesteps is called again, "
                f"got {tuple(sample.shape)} on {sample.device}"
            )
        if i and not self.plan.restarts[i - 1]:
            raise ValueError(
                f"sample must be what step returned before call {i} of {self.plan.solver}, which goes on from a state "
                "of its own, got another: what changes samples between steps, such as inpainting, needs a solver of "
                "one call a step without a corrector, such as dpmpp-2m"
            )
        with torch.inference_mode(False), torch.no_grad():
            self._y.copy_(sample)
            self._x.copy_(sample)
        if sample.dtype is not self._asked:
            self._asked = sample.dtype
            self._copy = self._y.clone if sample.dtype is torch.float32 else partial(self._y.to, sample.dtype)

    def _fitted(self, output: Tensor, sample: Tensor) -> Tensor:
        """An output of the state's shape, in a dtype that rows read; of a learned variance too, the mean alone."""
        if output.requires_grad:
            raise ValueError("model_output must be without gradients, which step does not pass on: use torch.no_grad()")
        output = prediction(output, sample)
        if output.shape != self.shape or output.device != self.device:
            raise ValueError(
                f"model_output must be {tuple(self.shape)} on {self.device}, as sample is, "
                f"got {tuple(output.shape)} on {output.device}"
            )
        output = output if output.dtype in FLOATS else output.to(torch.float32)
        if output.dtype is not self._dtype:
            backend = choose_backend("auto", self.device, torch.float32)
            self._row = backend.bind(self._registers, self._table, output.dtype).step
            self._dtype = output.dtype
            with torch.inference_mode(False):
                self._drawn = torch.empty(self.shape, dtype=output.dtype, device=self.device)
                self._z = self._drawn if output.dtype is torch.float32 else self._drawn.to(torch.float32)
                self._flat = self._z.view(len(output), -1)
        return output
