"""How rows call the network: once, or for guidance once on [uncond; cond] or twice. Guidance is batched here alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pndm_fast.loop.by_row import Live, arguments, marked
from pndm_fast.loop.call import Call
from pndm_fast.loop.conditioning import CannotBatch, batched
from pndm_fast.loop.guidance import rescaled
from pndm_fast.loop.network import Denoiser, prediction
from pndm_fast.loop.positions import Kind
from pndm_fast.loop.workspace import Workspace
from pndm_fast.row.registers import FLOATS
from pndm_fast.row.table import GUIDANCE

Output = tuple[Tensor, Tensor | None]  # (out, uncond); uncond is None where out holds both, or without guidance
Evaluate = Callable[..., Output]  # evaluate(first=False): `first` takes outputs of any form, which are not known yet
# arguments of a call of its own for uncond, and of the other
Trees = tuple[Mapping[str, Any] | None, Mapping[str, Any]]
Make = Callable[[Any, Any], Any]  # uncond, cond -> arguments


class InputWritten(RuntimeError):
    """The network wrote into the state, which it reads in place of a copy."""


class Evaluation(NamedTuple):
    """One kind of network call, with its arguments.

    Attributes:
        model: the network; weaker: that of guidance's second evaluation, mostly the same.
        trees: what they are called with besides x and t.
        guided: whether there is a second evaluation.
        rescale: of `Guidance`.
        split_reason: why guidance takes two calls; None where one call carries both, or there is no guidance.
    """

    model: Denoiser
    weaker: Denoiser
    trees: Trees
    guided: bool = False
    rescale: float = 0.0
    split_reason: str | None = None

    @property
    def cfg_copies(self) -> int:
        """2 where one call carries both evaluations of guidance, else 1."""
        return 2 if self.guided and self.split_reason is None else 1

    @property
    def calls(self) -> int:
        """Network calls of a row."""
        return 1 if self.split_reason is None else 2

    @property
    def marked(self) -> tuple[Any, ...]:
        """The trees at the row under way, as `conditioning` copies and refills them."""
        return tuple([marked(tree) for tree in self.trees])

    def split(self, call: Call, reason: str) -> Evaluation:
        """The same with two calls of the network.

        Raises:
            ValueError: the request asked for one.
        """
        if call.guidance.calls == "batched":
            raise ValueError(f"guidance calls='batched' cannot be had: {reason}")
        return self._replace(trees=_trees(call, _uncond, _cond), split_reason=reason)

    def bind(self, workspace: Workspace, trees: Trees | None = None) -> Evaluate:
        """The network call at a workspace's input.

        Outputs of another layout or dtype than the buffers have are copied. It raises `OutputMisfit` for those of
        another shape or device, and `InputWritten` where the network changed the state itself, which it reads in place
        of a copy.

        Args:
            trees: others of the same form, as `conditioning.copied` makes them.
        """
        x, t, direct = workspace.x_in, workspace.t, workspace.spec.direct
        uncond_tree, tree = trees or map(arguments, self.trees)
        model, weaker, rescale, fits = self.model.call, self.weaker.call, self.rescale, workspace.fits
        other = self.weaker.dtype or x.dtype

        def read(result: Any, first: bool) -> Tensor:
            out = prediction(result, x)
            return out if first else workspace.taken(out)

        def evaluate(first: bool = False) -> Output:
            uncond = None
            if uncond_tree is not None:
                # copies both ways: a network may write its inputs, or answer twice in one static buffer
                uncond = read(weaker(x.to(other, copy=True), t.clone(), **uncond_tree), first).clone()
            before = x._version
            out = model(x, t, **tree)
            if type(out) is not Tensor or not fits(out):
                out = read(out, first)
            if direct and not first and x._version != before:
                raise InputWritten("the network changed its input in place, which it did not at its first call")
            return self._rescaled(out, uncond, workspace) if rescale else (out, uncond)

        return evaluate

    def _rescaled(self, out: Tensor, uncond: Tensor | None, workspace: Workspace) -> Output:
        """The guided output in both places: a row's own guidance leaves two equal outputs as they are."""
        registers, shape = workspace.registers, workspace.x_in.shape
        given = (out,) if uncond is None else (out, uncond)
        if not all(one.dtype.is_floating_point and one.shape == shape for one in given):
            return out, uncond  # which the first call refuses by name
        # the first row's are as the network gave them: rounded as `taken` rounds those of all others
        out = out if out.dtype in FLOATS else out.to(workspace.spec.state)
        uncond = None if uncond is None else uncond.to(out.dtype)
        scale = workspace.table[registers.row.long(), GUIDANCE]
        if uncond is not None:
            out = rescaled(out, uncond, scale, self.rescale)
            return out, out
        without, cond = out.chunk(2)
        result = rescaled(cond, without, scale, self.rescale)
        both = out.clone()
        both[: registers.batch] = both[registers.batch :] = result
        return both, None


def evaluation_of(call: Call, kind: Kind, networks: tuple[Denoiser, ...]) -> Evaluation:
    """How a call's rows of that kind are evaluated.

    Raises:
        ValueError: one call for both evaluations was asked for and cannot be.
    """
    model, guidance = networks[kind.model], call.guidance
    plain = Evaluation(model, model, _trees(call, None, _cond))
    if not kind.guided:
        return plain
    assert call.uncond is not None
    weaker = call.weaker or model
    guided = plain._replace(weaker=weaker, guided=True, rescale=float(guidance.rescale))
    if weaker.network is not model.network:
        return guided.split(call, "the weaker network is another")
    if call.separate:
        return guided.split(call, call.separate)
    try:
        return guided._replace(trees=_trees(call, None, batched))
    except CannotBatch as reason:
        return guided.split(call, str(reason))


def _uncond(uncond: Any, cond: Any) -> Any:
    return uncond


def _cond(uncond: Any, cond: Any) -> Any:
    return cond


def _trees(call: Call, uncond: Make | None, cond: Make) -> Trees:
    """What is made of the call's two trees, for all rows or for the one under way.

    Raises:
        CannotBatch: of row 0's.
    """

    def of(make: Make) -> Mapping[str, Any]:
        made: Mapping[str, Any] = make(call.uncond, call.cond)
        return made if call.by_row is None else Live(call.by_row, make)

    return None if uncond is None else of(uncond), of(cond)
