"""Solver steps in steady state, on the buffers that `Sampler` uses and without a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from speed.harness import Side
from torch import Tensor

import pndm_fast as pf
from pndm_fast.loop.workspace import BufferSpec, Workspace
from pndm_fast.plan.plan import Plan
from pndm_fast.row import reference
from pndm_fast.row.backends import choose_backend
from pndm_fast.row.registers import NEVER, Registers
from pndm_fast.row.table import NARROW, SLOT, build, layout_of

ROWS = 16_384
FIRST = 10  # of a plan used as it is: four outputs are kept by then, whatever the solver's start


def buffers(
    shape: Sequence[int],
    slots: int,
    network: torch.dtype,
    slot: torch.dtype,
    device: torch.device,
    *,
    direct: bool,
    cfg_copies: int,
) -> Workspace:
    """What `Sampler` makes for float32 states [B, ...] and contiguous outputs of a network of that dtype."""
    return Workspace(
        BufferSpec(
            batch=shape[0],
            shape=tuple(shape[1:]),
            slots=slots,
            cfg_copies=cfg_copies,
            direct=direct,
            channels=1,
            state=torch.float32,
            slot=slot,
            out=network,
            network=network,
            time=torch.float32,
            table=(1, NARROW.width),
            device=device,
        )
    )


class Steps:
    """Steps as `Sampler` executes them between two network calls: the output's check and the bound row.

    Args:
        plan: used from row `FIRST` on; default PLMS, with four of its steady rows repeated `ROWS` times. They are
            from the end of a 1000-step plan, where so many of them keep the state in range.
        row: repeat this row of the plan.
        direct: the network reads y itself; default where its dtype is the state's.
    """

    def __init__(
        self,
        shape: Sequence[int],
        network: torch.dtype = torch.float32,
        *,
        plan: Plan | None = None,
        row: int | None = None,
        solver: str = "plms",
        direct: bool | None = None,
        cfg_copies: int = 1,
        device: str = "cpu",
        backend: str = "auto",
    ) -> None:
        place = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
        rows = build([plan or pf.make_plan(solver, steps=1000)], torch.float32)
        lines, halt = rows.data[:-1], rows.data[-2:-1]
        self.first = FIRST if plan and row is None else 0
        again = lines[-9:-5] if row is None else lines[row : row + 1]
        repeated = torch.cat([again.repeat(ROWS // len(again), 1), halt])
        self.table = (lines if plan and row is None else repeated).to(place)
        self.batch, slot = shape[0], network if plan is None or plan.raw else torch.float32
        same = network is torch.float32 and cfg_copies == 1 if direct is None else direct
        self.workspace = buffers(shape, rows.slots, network, slot, place, direct=same, cfg_copies=cfg_copies)
        self._fill(network, cfg_copies, shape)
        self.step = choose_backend(backend, place, torch.float32).bind(self.registers, self.table, network).step

    def _fill(self, network: torch.dtype, cfg_copies: int, shape: Sequence[int]) -> None:
        r = self.registers
        generator = torch.Generator(r.y.device).manual_seed(0)
        for tensor in (r.y, r.slots, r.seeds):
            tensor.copy_(
                torch.randn(tensor.shape, generator=generator, device=r.y.device) * (1 if tensor is r.y else 3)
            )
        self.start = r.y.clone()
        full = (cfg_copies * shape[0], *shape[1:])
        self.out = torch.randn(full, generator=generator, device=r.y.device).to(network)
        self.reset()

    @property
    def registers(self) -> Registers:
        return self.workspace.registers

    def reset(self, row: int | None = None) -> None:
        """To the first row, or another."""
        r = self.registers
        r.row.fill_(self.first if row is None else row)
        r.active.fill_(self.batch)
        r.first_bad.fill_(NEVER)
        r.done.zero_()
        for tensor in (r.x, r.y):
            tensor.copy_(self.start)

    def run(self, calls: int) -> None:
        """That many steps."""
        fits, step, out = self.workspace.fits, self.step, self.out
        for _ in range(calls):
            assert fits(out)
            step(out, None, None)
        if out.is_cuda:
            torch.cuda.synchronize()

    def side(self) -> Side:
        """These steps as a contestant."""
        return Side(self.run, self.reset, len(self.table) - 1 - self.first)

    def weights(self) -> list[float]:
        """The first row's coefficients of y and of the outputs, newest first."""
        line, y = self.table[self.first].tolist(), layout_of(self.table).y
        newest = int(line[SLOT])
        return [line[y + 1], *(line[y + 2 + (newest - age) % 4] for age in range(4))]

    def newest_slot(self) -> int:
        """The slot that the first row writes."""
        return int(self.table[self.first, SLOT])

    def check(self, rows: int = 5) -> None:
        """Our registers after some rows are the reference's, bit for bit."""
        self.reset()
        expected = copied(self.registers)
        flat = self.out.reshape(len(self.out), -1)
        uncond, out = (flat[: self.batch], flat[self.batch :]) if expected.cfg_copies == 2 else (None, flat)
        for _ in range(rows):
            reference.apply_row(expected, self.table, out, uncond)
        self.run(rows)
        got, n = self.registers, expected.n
        for name in ("x", "y", "slots", "row", "t", "net_in", "active"):
            a, b = getattr(got, name), getattr(expected, name)
            if a is not None:
                a, b = (a[..., :n], b[..., :n]) if name in ("x", "y", "slots") else (a, b)
                assert torch.equal(a, b), f"{name} is not the reference's"
        self.reset()

    def moved(self, reads: int = 3, x: bool = False) -> int:
        """Bytes of a row: reads y, out and old slots; writes slot, y and the network's input where it is separate."""
        r = self.registers
        state, slot = r.y.element_size(), r.slots.element_size()
        each = 2 * state + self.out.element_size() * r.cfg_copies + (reads + 1) * slot + x * state
        if r.net_in is not None:
            each += r.net_in.element_size() * r.cfg_copies
        return each * self.batch * r.n


def copied(registers: Registers) -> Registers:
    """Registers that share no memory with these."""
    tensors = {name: value.clone() for name, value in vars(registers).items() if isinstance(value, Tensor)}
    return dataclasses.replace(registers, **tensors)


class DiffusersSteps:
    """`PNDMScheduler.step` in steady state, called as diffusers' pipelines call it.

    Args:
        guidance: the output holds [uncond; cond], and each step also makes the next doubled input.
        state: dtype of the sample, to which outputs are converted.
    """

    def __init__(self, steps: Steps, guidance: float | None = None, state: torch.dtype = torch.float32) -> None:
        from diffusers import PNDMScheduler

        self.scheduler = PNDMScheduler(skip_prk_steps=True, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
        device = steps.out.device
        self.scheduler.set_timesteps(1000, device=device)
        self.times = list(self.scheduler.timesteps)
        shape = (steps.batch, *steps.out.shape[1:])
        self.start = steps.start[:, : steps.registers.n].reshape(shape).to(state)
        self.out, self.guidance, self.state = steps.out, guidance, state
        self.sample, self.double, self.at = self.start, None, 0

    def rewind(self) -> None:
        """To the very start, for the equality check."""
        self.scheduler.set_timesteps(1000, device=self.start.device)
        self.sample, self.at = self.start, 0

    def reset(self) -> None:
        """To the first steady row."""
        self.sample, self.at = self.start, FIRST

    def run(self, calls: int) -> None:
        """That many steps."""
        step, sample, guidance = self.scheduler.step, self.sample, self.guidance
        same = self.out.dtype is self.state
        for t in self.times[self.at : self.at + calls]:
            out = self.out if same else self.out.to(self.state)
            if guidance is None:
                sample = step(out, t, sample, return_dict=False)[0]
            else:
                uncond, cond = out.chunk(2)
                sample = step(uncond + guidance * (cond - uncond), t, sample, return_dict=False)[0]
                self.double = torch.cat([sample] * 2).to(self.out.dtype)
        self.sample, self.at = sample, self.at + calls
        if sample.is_cuda:
            torch.cuda.synchronize()

    def side(self) -> Side:
        """These steps as a contestant."""
        return Side(self.run, self.reset, len(self.times) - FIRST)


def against_diffusers(
    shape: Sequence[int],
    guidance: float | None = None,
    device: str = "cpu",
    network: torch.dtype = torch.float32,
) -> tuple[Steps, DiffusersSteps]:
    """Our steps and diffusers', after both have walked the same `FIRST` + 10 rows to the same samples."""
    plan = pf.make_plan("plms", pf.Schedule.linear(), steps=1000, compat="diffusers")
    if guidance is not None:
        plan = plan.with_guidance(guidance)
    ours = Steps(shape, network, plan=plan, cfg_copies=1 if guidance is None else 2, device=device)
    theirs = DiffusersSteps(ours, guidance)
    ours.reset(0)
    theirs.rewind()
    for _ in range(FIRST + 10):
        ours.run(1)
        theirs.run(1)
        difference = (ours.workspace.state() - theirs.sample).abs().max().item()
        assert difference <= 5e-5, f"differs from diffusers by {difference}"
    ours.reset()
    return ours, theirs


class Compiled:
    """The expression on the registers of a `Steps`, its coefficients constants: the easiest form for a compiler.

    Args:
        place: write into the buffers that ours writes, instead of allocating results.
    """

    def __init__(self, steps: Steps, place: bool) -> None:
        r, first = steps.registers, steps.newest_slot()
        slots = [r.slots[(first - age) % 4] for age in range(4)]
        cy, c0, c1, c2, c3 = steps.weights()
        network = steps.out.dtype if r.net_in is not None else None
        out = steps.out.reshape(steps.batch, -1)

        def fresh(y, out, s1, s2, s3):
            following = cy * y + c0 * out.float() + c1 * s1.float() + c2 * s2.float() + c3 * s3.float()
            return following, out.clone(), None if network is None else following.to(network)

        def into(y, out, s1, s2, s3, slot, net_in):
            following = cy * y + c0 * out.float() + c1 * s1.float() + c2 * s2.float() + c3 * s3.float()
            slot.copy_(out)
            if net_in is not None:
                net_in.copy_(following)
            y.copy_(following)

        options = {"cpp.threads": torch.get_num_threads()}
        torch._dynamo.reset()
        self.call = torch.compile(into if place else fresh, dynamic=False, fullgraph=True, options=options)
        self.arguments = (r.y, out, *slots[1:], *((slots[0], r.net_in) if place else ()))

    def run(self, calls: int) -> Any:
        call, arguments = self.call, self.arguments
        with torch.no_grad():
            for _ in range(calls):
                results = call(*arguments)
        if arguments[0].is_cuda:
            torch.cuda.synchronize()
        return results


def compiled_rivals(steps: Steps) -> dict[str, Side]:
    """Both compiled forms as contestants, once they agree with ours.

    To 1e-5, or to one bfloat16 rounding where the network's dtype is that.
    """
    fresh, into = Compiled(steps, False), Compiled(steps, True)
    r, newest = steps.registers, steps.newest_slot()
    steps.reset()
    steps.run(1)
    expected = [None if x is None else x.clone() for x in (r.y, r.slots[newest], r.net_in)]
    steps.reset()
    results = {"fresh": fresh.run(1)}
    into.run(1)
    results["into"] = (r.y, r.slots[newest], r.net_in)
    for got in results.values():
        torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=0)
        assert torch.equal(got[1], expected[1])
        if expected[2] is not None:
            torch.testing.assert_close(got[2], expected[2], atol=1e-5, rtol=2**-7)
    steps.reset()
    return {"inductor": Side(fresh.run, steps.reset), "inductor-in-place": Side(into.run, steps.reset)}
