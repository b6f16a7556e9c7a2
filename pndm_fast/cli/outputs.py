"""Where the pictures of a job go: a folder, which resumes, or one file."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pndm_fast.cli import images
from pndm_fast.cli.images import Bytes


class UsageError(Exception):
    """A mistake in the arguments, found before the first network call."""


class Item(NamedTuple):
    """One picture to make."""

    seed: int
    label: int | None


class Folder:
    """One PNG for each seed. What is there already, by the same recipe, is not made again."""

    def __init__(self, path: Path, recipe: dict[str, Any], force: bool) -> None:
        self.path, self.recipe, self.force, self.written = path, recipe, force, 0

    def missing(self, items: list[Item]) -> list[Item]:
        """The pictures still to make, or UsageError where one is by another recipe or none can be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out must be a folder that can be made, got {self.path}: {error.strerror}") from error
        _check_writable(self.path)
        return [item for item in items if self.force or not self._has(*self._file(item))]

    def _file(self, item: Item) -> tuple[Path, dict[str, Any]]:
        return self.path / f"{item.seed:06d}.png", {**self.recipe, "class": item.label, "seed": item.seed}

    def _has(self, file: Path, recipe: dict[str, Any]) -> bool:
        if not file.exists():
            return False
        try:
            found = images.read_recipe(file)
        except (OSError, ValueError, SyntaxError):  # not a picture, or not ours; SyntaxError is Pillow's
            found = None
        if found != recipe:
            raise UsageError(f"--out has {file} by another recipe: give --force to replace it, or another folder")
        return True

    def add(self, items: Sequence[Item], pictures: Bytes, bad: frozenset[int]) -> None:
        """Write the pictures that are not bad."""
        for i, item in enumerate(items):
            if i not in bad:
                file, recipe = self._file(item)
                images.save_png(file, pictures[i], recipe)
                self.written += 1

    def close(self) -> None:
        """Everything is written."""


class Sheet:
    """One file for all pictures: a contact sheet (.png) or an array (.npz). Bad pictures are black in it."""

    def __init__(self, path: Path, recipe: dict[str, Any], force: bool) -> None:
        self.path, self.recipe, self.force, self.written = path, recipe, force, 0
        self._items: list[Item] = []
        self._pictures: list[Bytes] = []

    def missing(self, items: list[Item]) -> list[Item]:
        """All of them, or UsageError where the file exists or cannot be written."""
        if self.path.exists() and not self.force:
            raise UsageError(f"--out must be a new file, got {self.path}: give --force to replace it")
        _check_writable(self.path.parent)
        return items

    def add(self, items: Sequence[Item], pictures: Bytes, bad: frozenset[int]) -> None:
        """Keep the pictures."""
        self._items.extend(items)
        self._pictures.append(pictures)

    def close(self) -> None:
        """Write the file, if there is a picture."""
        if not self._items:
            return
        pictures, first = np.concatenate(self._pictures), self._items[0]
        labels = None if first.label is None else [item.label for item in self._items]
        recipe = {**self.recipe, "class": labels, "seed": first.seed, "number": len(pictures)}
        if self.path.suffix == ".npz":
            images.save_npz(self.path, pictures, recipe)
        else:
            images.save_png(self.path, images.grid(pictures), recipe)
        self.written = len(pictures)


def open_target(out: str, recipe: dict[str, Any], force: bool) -> Folder | Sheet:
    """Where pictures go, by the form of the name.

    Raises:
        UsageError: another suffix, or PNG without Pillow.
    """
    path = Path(out or "?.?")
    folder = out.endswith("/") or path.suffix == "" or path.is_dir()
    if not folder and path.suffix not in (".png", ".npz"):
        raise UsageError(f"--out must end in .png or .npz, or be a folder, got {out!r}")
    if folder or path.suffix == ".png":
        try:
            importlib.import_module("PIL.Image")
        except ImportError as error:
            raise UsageError("--out must be .npz without Pillow: pip install 'pndm_fast[images]'") from error
    return Folder(path, recipe, force) if folder else Sheet(path, recipe, force)


def _check_writable(folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f"--out must be in a folder that can be written, got {folder}: {error.strerror}") from error
