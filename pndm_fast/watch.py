"""What a captured graph takes for granted of a network: its tensors, and that it is a network for replaying."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pndm_fast.network import in_training

DEPTH = 3  # wrappers that are looked through


def modules_in(model: Any, depth: int = DEPTH) -> Iterator[nn.Module]:
    """The modules that a callable uses, as far as that can be seen.

    Itself, a bound method's owner, what a partial, a closure or the object's attributes hold, and globals that the
    function's code names.
    """
    if isinstance(model, nn.Module):
        yield model
        return
    if depth == 0:
        return
    parts: list[Any] = [getattr(model, "__self__", None), getattr(model, "__wrapped__", None)]
    if isinstance(model, functools.partial):
        parts += [model.func, *model.args, *model.keywords.values()]
    if inspect.isfunction(model):
        parts += [cell.cell_contents for cell in model.__closure__ or () if _filled(cell)]
        parts += [model.__globals__.get(name) for name in model.__code__.co_names]
    elif not isinstance(model, (type, Tensor)) and callable(model):
        parts += list(getattr(model, "__dict__", {}).values())
    for part in parts:
        if isinstance(part, nn.Module) or (callable(part) and not isinstance(part, type)):
            yield from modules_in(part, depth - 1)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False


class Watch:
    """Notices that a network's parameters or buffers are no longer the tensors, in the memory, that they were.

    Values updated in place are no change: a graph reads the same memory. Weights that cannot be seen from Python (of
    a compiled package, say) are not watched. The tensors are kept alive, since a graph may still read them.
    """

    def __init__(self, *models: Any) -> None:
        roots = list({id(module): module for model in models for module in modules_in(model)}.values())
        self._scripted = [root for root in roots if isinstance(root, torch.jit.ScriptModule)]
        self._tables: list[tuple[dict[str, Any], int]] = []
        self._entries: list[tuple[dict[str, Any], str, Any]] = []
        for root in roots:
            if not isinstance(root, torch.jit.ScriptModule):
                self._look(root)
        self._tensors = [value for _, _, value in self._entries if isinstance(value, Tensor)]
        self._tensors += self._of_scripts()
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]

    def _look(self, root: nn.Module) -> None:
        for module in root.modules():
            for table in (module._parameters, module._buffers, module._modules):
                self._tables.append((table, len(table)))
                self._entries += [(table, name, value) for name, value in table.items()]

    def _of_scripts(self) -> list[Tensor]:  # a script module makes new Python objects of its tensors at each look
        return [t for script in self._scripted for t in (*script.parameters(), *script.buffers())]

    def changed(self) -> bool:
        """Whether anything is another than at the start. 60 us for a network of 330 tensors."""
        if any(len(table) != length for table, length in self._tables):
            return True
        if any(table.get(name) is not value for table, name, value in self._entries):
            return True
        if any(tensor.data_ptr() != pointer for tensor, pointer in zip(self._tensors, self._pointers, strict=True)):
            return True
        scripts = [tensor.data_ptr() for tensor in self._of_scripts()]
        return scripts != self._pointers[len(self._pointers) - len(scripts) :]


def obstacle(model: Any) -> str:
    """Why a network must not be captured, as far as that shows before it runs; empty where nothing does."""
    for part in (model, *modules_in(model)):
        if in_training(part):
            return "the network is in training mode: call .eval()"
        config = getattr(part, "get_compiler_config", None)
        if config is not None and (config() or {}).get("triton.cudagraphs"):
            return (
                "the network makes CUDA graphs of its own (torch.compile mode 'reduce-overhead' or 'max-autotune'): "
                "compile it with the default mode or 'max-autotune-no-cudagraphs'"
            )
    return ""
