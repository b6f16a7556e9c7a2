"""A segment: rows one after another that call the network in the same way, and all that is fixed while they run."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pndm_fast.loop.call import Call
from pndm_fast.loop.evaluation import Evaluation
from pndm_fast.loop.memory_format import channels_for
from pndm_fast.loop.positions import Kind, next_rows
from pndm_fast.loop.workspace import BufferSpec, OutputSpec, Workspace
from pndm_fast.row.backends import Backend
from pndm_fast.row.layout import elements
from pndm_fast.row.registers import ALIGN, Registers
from pndm_fast.row.table import Table

LEAST_ROWS = 128


class Segment(NamedTuple):
    """The next rows of each sample.

    Attributes:
        kind: of the network calls; evaluation: how they are made.
        at: each sample's first row here; length: how many rows the longest plan has here.
        table: the plans' lines.
        network, time: dtypes of the network's inputs.
        memory_format: of them, where it was asked for.
        snapshot: the registers before, where these are not the first rows of the call.
    """

    call: Call
    kind: Kind
    evaluation: Evaluation
    at: tuple[int, ...]
    length: int
    table: Table
    backend: Backend
    device: torch.device
    network: torch.dtype
    time: torch.dtype
    memory_format: torch.memory_format | None = None
    snapshot: Registers | None = None

    def split(self, reason: str) -> Segment:
        """The same with two network calls for guidance."""
        return self._replace(evaluation=self.evaluation.split(self.call, reason))

    def as_learned(self, output: OutputSpec) -> Segment:
        """The same as the network is known to take it."""
        known = output.split_reason
        return self if known is None or self.evaluation.split_reason else self.split(known)

    def channels(self) -> int:
        """The layout of the network's inputs: 1 contiguous, C channels-last. In phase space a row reads whole halves.

        Raises:
            ValueError: channels-last was asked for, and cannot be.
        """
        if self.call.components == 1:
            return channels_for(self.evaluation.model.network, self.memory_format, self.call.shape)
        if self.memory_format not in (None, torch.contiguous_format):
            raise ValueError(f"memory_format must be contiguous_format in phase space, got {self.memory_format}")
        return 1

    def buffers(self, output: OutputSpec) -> BufferSpec:
        """The cheapest ones: no separate input where the network can read y, narrow slots where that loses nothing."""
        call, copies = self.call, self.evaluation.cfg_copies
        same = self.network is call.state_dtype and elements(call.shape) % ALIGN == 0
        # another network's outputs may be wider
        alone = len(call.segments) == 1 or len({kind.model for kind, _ in call.segments}) == 1
        narrow = alone and call.raw and call.state_dtype is torch.float32
        return BufferSpec(
            batch=call.batch,
            shape=call.shape,
            slots=self.table.slots,
            cfg_copies=copies,
            direct=copies == 1 and call.unscaled and same and not output.writes_input,
            channels=output.channels,
            state=call.state_dtype,
            slot=output.dtype if narrow else call.state_dtype,
            out=output.dtype,
            network=self.network,
            time=self.time,
            table=(room(self.table.rows), self.table.width),
            device=self.device,
        )

    def first_rows(self) -> list[int]:
        """Where in the table each sample's plan begins."""
        return [self.table.first[i] for i in self.call.plan_of]

    def begin(self, workspace: Workspace) -> None:
        """Write into buffers what the first of these rows needs."""
        rows = next_rows(self.call.plans, self.at)
        at = [first + i for first, i in zip(self.first_rows(), self.at, strict=True)]
        lines = [self.table.start[i] for i in self.call.plan_of]
        workspace.write(self.call.seeds, self.table, lines, at, rows)
        if self.snapshot is None:
            workspace.start(self.call, self.backend, rows)
        else:
            workspace.resume(self.snapshot)
            workspace.feed(rows)


def room(rows: int, least: int = LEAST_ROWS) -> int:
    """Lines that buffers have for a table of so many rows: other plans will mostly find room in them too."""
    return max(least, 1 << (rows - 1).bit_length())
