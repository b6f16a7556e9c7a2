"""The registers, described once: buffers, checks, the operator and the C++ struct are made from this list.

Needs the standard library alone: setup.py reads this file where there is no torch, and writes csrc's registers.inc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

# state, slot, time and network: dtypes that a trajectory chooses
Element = Literal["state", "slot", "time", "network", "int32", "int64"]
# batch samples of n elements each, rows of our own buffers `stride` elements apart, n_slots past outputs, and `inputs`
# samples that a call of the network sees: under guidance twice the batch, (uncond, cond)
Size = Literal["batch", "stride", "n_slots", "n", "inputs", 1]


@dataclass(frozen=True)
class Register:
    """What one register is.

    Attributes:
        meaning: in words.
        element: what it holds.
        shape: sizes, outermost first.
        changed: whether a row writes to it.
        optional: whether there may be none.
        zeroed: whether every launch must find it zero, the first one too.
    """

    meaning: str
    element: Element
    shape: tuple[Size, ...]
    changed: bool = True
    optional: bool = False
    zeroed: bool = False

    @property
    def small(self) -> bool:
        """Whether it is some numbers a sample, not a whole one."""
        return not {"stride", "n"} & set(self.shape)

    def __str__(self) -> str:
        none = ", or None" if self.optional else ""
        return f"{self.meaning}; {self.element} [{', '.join(map(str, self.shape))}]{none}"


def _is(meaning: str, element: Element, *shape: Size, **marks: bool) -> Mapping[str, Register]:
    return {"register": Register(meaning, element, shape, **marks)}


@dataclass(frozen=True)
class Registers:
    """The memory that one trajectory works in: a batch of samples of n elements each.

    Sample b's elements lie at [b, :n] in the physical order of the network's output. State is float32, or float64 for
    exact runs; the padding of a row from n to `stride` holds anything.
    """

    x: Tensor = field(metadata=_is("anchor", "state", "batch", "stride"))
    y: Tensor = field(metadata=_is("state", "state", "batch", "stride"))
    slots: Tensor = field(metadata=_is("past converted outputs", "slot", "n_slots", "batch", "stride"))
    row: Tensor = field(metadata=_is("the table row that each sample executes next", "int32", "batch"))
    t: Tensor = field(metadata=_is("the network's time input", "time", "inputs"))
    net_in: Tensor | None = field(
        metadata=_is("the network's input, where that is not y itself", "network", "inputs", "n", optional=True)
    )
    seeds: Tensor = field(metadata=_is("the bits of 64-bit seeds", "int64", "batch", changed=False))
    first_bad: Tensor = field(metadata=_is("the row whose output was first not finite, else NEVER", "int32", "batch"))
    active: Tensor = field(metadata=_is("how many samples have not reached their halt row", "int32", 1))
    done: Tensor = field(metadata=_is("tickets of the Triton kernel's programs", "int32", "batch", zeroed=True))
    n: int
    channels: int = 1  # C where samples are stored channels-last [n / C, C]

    @property
    def batch(self) -> int:
        """Samples."""
        return self.row.shape[0]

    @property
    def cfg_copies(self) -> int:
        """Copies of each sample that a call of the network sees: 2 under guidance, else 1."""
        return self.t.shape[0] // self.batch

    @property
    def sizes(self) -> dict[Size, int]:
        """What the registers' shapes are made of."""
        return sizes(self.batch, self.y.shape[-1], self.slots.shape[0], self.n, self.cfg_copies)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All registers, in the order of `REGISTERS`."""
        return tuple([getattr(self, name) for name in REGISTERS])


def sizes(batch: int, stride: int, n_slots: int, n: int, cfg_copies: int) -> dict[Size, int]:
    """The sizes of shapes by their names."""
    return {"batch": batch, "stride": stride, "n_slots": n_slots, "n": n, "inputs": cfg_copies * batch, 1: 1}


REGISTERS: dict[str, Register] = {f.name: f.metadata["register"] for f in fields(Registers) if f.metadata}
Registers.__doc__ = "\n        ".join(
    [f"{Registers.__doc__}\n    Attributes:", *(f"{name}: {register}." for name, register in REGISTERS.items())]
)
