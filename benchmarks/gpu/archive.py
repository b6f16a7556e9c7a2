"""One archive of everything so far; whoever reads it finds it whole at any moment."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LARGEST = 2**22  # bytes of one file, the last of a log: the archive has to stay small


def write(path: Path, folders: list[Path]) -> None:
    """Files by their names from the repository's root, so that unpacking it there puts results where they belong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    with tarfile.open(beside, "w:gz", compresslevel=5) as archive:
        for file in sorted(file for folder in folders for file in folder.rglob("*") if file.is_file()):
            data = file.read_bytes()[-LARGEST:]  # of a log that is being written, what is there
            entry = tarfile.TarInfo(_name(file))
            entry.size, entry.mtime = len(data), int(file.stat().st_mtime)
            archive.addfile(entry, io.BytesIO(data))
    os.replace(beside, path)


def replace(path: Path, text: str) -> None:
    """Write a file at once: a reader sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text)
    os.replace(beside, path)


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else f"{file.parent.name}/{file.name}"
