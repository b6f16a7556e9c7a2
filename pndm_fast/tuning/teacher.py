"""What a plan is to reproduce: where a fine plan takes the same noise, kept on disk if asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pndm_fast.plan.atomic import atomic_path, remove_abandoned
from pndm_fast.plan.numbers import is_number
from pndm_fast.tuning.calls import Pairs, same_outputs

KEY, TENSORS = "fit.json", "*.safetensors"
TOLD = "told"  # in a file of tensors: a plain tree as JSON

Shapes = Mapping[str, tuple[int | None, ...]]


class Folder:
    """Where a fit keeps what it has: the teacher's samples, and the parameters on their way.

    Raises:
        ValueError: it holds another fit's, or tensors without a word on whose they are.
    """

    def __init__(self, path: str | Path, key: Mapping[str, Any]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"folder must be a folder, got {self.path}, which is a file")
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(key, indent=1, sort_keys=True)
        file = self.path / KEY
        if file.exists():
            _check_key(file, json.loads(text))
        elif any(self.path.glob(TENSORS)):  # whose, nothing says
            raise ValueError(f"folder must be empty or of the same fit, got {self.path} with tensors and no {KEY}")
        else:
            with atomic_path(file) as partial:
                partial.write_text(text + "\n")
        for name in (KEY, TENSORS):
            remove_abandoned(self.path, name)

    def load(self, name: str, shapes: Shapes) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors of these shapes, None being any length, and what was said of them; None where there are none yet.

        Raises:
            ValueError: the file is damaged, or holds other tensors.
        """
        file = self.path / f"{name}.safetensors"
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                found = {k: opened.get_tensor(k) for k in opened.keys()}
                words = json.loads((opened.metadata() or {}).get(TOLD, "null"))
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"folder must hold a fit's own files, got {file} which is damaged: {error}") from error
        if found.keys() != shapes.keys() or not all(_holds(found[k], shape) for k, shape in shapes.items()):
            raise ValueError(f"folder must hold a fit's own files, got {file} with other tensors, or NaN")
        return found, words

    def save(self, name: str, tensors: dict[str, Tensor], words: Any) -> None:
        """Keep tensors and a plain tree: whole or not at all."""
        with atomic_path(self.path / f"{name}.safetensors") as partial:
            save_file({k: t.clone() for k, t in tensors.items()}, partial, metadata={TOLD: json.dumps(words)})

    def remove(self, name: str) -> None:
        """Forget tensors that were saved."""
        (self.path / f"{name}.safetensors").unlink(missing_ok=True)


def _holds(tensor: Tensor, shape: tuple[int | None, ...]) -> bool:
    fits = all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=False))
    return len(shape) == tensor.dim() and fits and tensor.is_floating_point() and not bool(tensor.isnan().any())


def _check_key(file: Path, key: Mapping[str, Any]) -> None:
    try:
        kept = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"folder must be a fit's own, got {file} which is not JSON") from error
    other = [name for name in key if not isinstance(kept, dict) or not _same(name, key[name], kept.get(name))]
    if other:
        raise ValueError(f"folder must be empty or of the same fit, got one with another {', '.join(sorted(other))}")


def _same(name: str, own: Any, kept: Any) -> bool:
    if name == "outputs" and own and isinstance(kept, list) and all(map(is_number, kept)):
        return same_outputs(own, kept)  # another machine rounds otherwise
    return bool(own == kept)


def chunks(indices: range, size: int) -> Iterator[range]:
    """The same in parts of at most `size`."""
    for start in range(indices.start, indices.stop, size):
        yield range(start, min(start + size, indices.stop))


def samples(run: Callable[[range], Tensor], indices: range, size: int, advance: Callable[[], None]) -> Tensor:
    """[len(indices), *shape], part by part."""
    parts = []
    for chunk in chunks(indices, size):
        parts.append(run(chunk))
        advance()
    return torch.cat(parts)


def ends(
    run: Callable[[range], Tensor],
    pairs: Pairs,
    indices: range,
    size: int,
    folder: Folder | None,
    advance: Callable[[], None],
) -> Tensor:
    """The teacher's samples; those in the folder are not made again.

    Raises:
        ValueError: the folder has them for another conditioning.
    """

    def kept(chunk: range) -> Tensor:
        if folder is None:
            return run(chunk)
        name, told = f"teacher-{chunk.start:06}", digest(pairs.trees(chunk))
        found = folder.load(name, {"ends": (len(chunk), *pairs.shape)})
        if found is None:
            made = run(chunk)
            folder.save(name, {"ends": made}, told)
            return made
        if found[1] != told:
            raise ValueError(f"folder must be empty or of the same fit, got other conditioning for pairs {chunk}")
        return found[0]["ends"]

    return samples(kept, indices, size, advance)


def digest(tree: Any) -> str:
    """Of the values of a tree; objects of other types count by their type alone."""
    seen = hashlib.sha256()

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            seen.update(str((tuple(value.shape), value.dtype)).encode())
            seen.update(value.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
        elif isinstance(value, Mapping):
            for key in value:
                seen.update(str(key).encode())
                look(value[key])
        elif isinstance(value, (list, tuple)):
            seen.update(str(len(value)).encode())
            for part in value:
                look(part)
        elif hasattr(value, "entries") or hasattr(value, "value"):
            look(getattr(value, "entries", getattr(value, "value", None)))
        else:
            plain = isinstance(value, (int, float, str, type(None)))
            seen.update((repr(value) if plain else type(value).__name__).encode())

    look(tree)
    return seen.hexdigest()
