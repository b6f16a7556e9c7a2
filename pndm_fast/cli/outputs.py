"""Where the pictures of a job go: a folder, which resumes, or one file."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pndm_fast.cli import images
from pndm_fast.cli.errors import UsageError
from pndm_fast.cli.images import Bytes


class Item(NamedTuple):
    """One picture to make, in a folder by the name of its seed or one of its own."""

    seed: int
    label: int | None
    name: str | None = None


class Draw(NamedTuple):
    """The pictures of one call of the sampler, and the places of those that are wanted.

    A network may round differently in another batch, or at another place of it: to make one picture again, its call is
    made again, whatever else is in it.
    """

    items: Sequence[Item]
    kept: Sequence[int]


class Folder:
    """One PNG for each seed. What is there already, by the same recipe, is not made again."""

    def __init__(self, path: Path, force: bool) -> None:
        self.path, self.force, self.written = path, force, 0
        self.recipe: dict[str, Any] = {}

    def check(self) -> None:
        """UsageError where nothing can be written."""
        check_writable(self.path)

    def missing(self, items: list[Item]) -> list[Item]:
        """The pictures still to make, or UsageError where one is by another recipe, or the folder cannot be made."""
        make_folder(self.path)
        return [item for item in items if self.force or not self._has(*self._file(item))]

    def _file(self, item: Item) -> tuple[Path, dict[str, Any]]:
        name = item.name or f"{item.seed:06d}.png"
        return self.path / name, {**self.recipe, "class": item.label, "seed": item.seed}

    def _has(self, file: Path, recipe: dict[str, Any]) -> bool:
        if not file.exists():
            return False
        try:
            found = images.read_recipe(file)
        except (OSError, ValueError, SyntaxError):  # not a picture, or not ours; SyntaxError is Pillow's
            found = None
        if found is None or not isinstance(found, dict):
            raise UsageError(f"--out has {file}, which is not ours: give --force to replace it, or another folder")
        # which batch it was drawn in is no choice of the pictures
        other = [key for key in {**recipe, **found} if key not in ("batch", "place") and _differ(key, recipe, found)]
        if other:
            told = f"{other[0]} {found.get(other[0])!r:.60}, not {recipe.get(other[0])!r:.60}"
            raise UsageError(
                f"--out has {file} by another recipe ({told}): give --force to replace it, or another folder"
            )
        return True

    def add(self, draw: Draw, pictures: Bytes, bad: frozenset[int]) -> None:
        """Write the pictures that are wanted and not bad."""
        for i in draw.kept:
            if i not in bad:
                file, recipe = self._file(draw.items[i])
                images.save_png(file, pictures[i], {**recipe, "batch": len(draw.items), "place": i})
                self.written += 1

    def close(self) -> None:
        """Everything is written."""


def _differ(key: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (key in one) != (key in other) or one.get(key) != other.get(key)


class Sheet:
    """One file for all pictures: a contact sheet (.png) or an array (.npz). Bad pictures are black in it."""

    def __init__(self, path: Path, force: bool) -> None:
        self.path, self.force, self.written = path, force, 0
        self.recipe: dict[str, Any] = {}
        self._draws: list[Draw] = []
        self._pictures: list[Bytes] = []

    def check(self) -> None:
        """UsageError where the file exists or cannot be written."""
        if self.path.exists() and not self.force:
            raise UsageError(f"--out must be a new file, got {self.path}: give --force to replace it")
        check_writable(self.path.parent, there=True)

    def missing(self, items: list[Item]) -> list[Item]:
        """All of them."""
        return items

    def add(self, draw: Draw, pictures: Bytes, bad: frozenset[int]) -> None:
        """Keep the pictures."""
        self._draws.append(draw)
        self._pictures.append(pictures)

    def close(self) -> None:
        """Write the file, if there is a picture."""
        if not self._draws:
            return
        items = [item for draw in self._draws for item in draw.items]
        pictures, labels = np.concatenate(self._pictures), [item.label for item in items]
        recipe = {**self.recipe, "class": None if labels[0] is None else labels, "seed": items[0].seed}
        recipe |= {"number": len(pictures), "batch": len(self._draws[0].items)}
        if self.path.suffix.lower() == ".npz":
            images.save_npz(self.path, pictures, recipe)
        else:
            images.save_png(self.path, images.grid(pictures), recipe)
        self.written = len(pictures)


def open_target(out: str, force: bool) -> Folder | Sheet:
    """Where pictures go, by the form of the name.

    Raises:
        UsageError: another suffix, PNG without Pillow, or a place where nothing can be written.
    """
    path = Path(out or "?.?")
    suffix = path.suffix.lower()
    folder = out.endswith("/") or suffix == "" or path.is_dir()
    if not folder and suffix not in (".png", ".npz"):
        raise UsageError(f"--out must end in .png or .npz, or be a folder, got {out!r}")
    if folder or suffix == ".png":
        check_pillow()
    target = Folder(path, force) if folder else Sheet(path, force)
    target.check()
    return target


def check_pillow() -> None:
    """UsageError where no PNG can be written."""
    try:
        importlib.import_module("PIL.Image")
    except ImportError as error:
        raise UsageError("--out must be .npz without Pillow: pip install 'pndm_fast[images]'") from error


def make_folder(path: Path) -> None:
    """UsageError where it is not there and cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out must be a folder that can be made, got {path}: {error.strerror}") from error


def check_writable(folder: Path, there: bool = False) -> None:
    """UsageError where no file can be made in that folder, or, where it need not be there, the folder itself cannot."""
    if not there:
        folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not folder.is_dir():
            raise UsageError(f"--out must be a folder that can be made, got {folder}, which is a file")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f"--out must be in a folder that can be written, got {folder}: {error.strerror}") from error
