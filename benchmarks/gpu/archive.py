"""One archive of everything so far; whoever reads it finds it whole at any moment."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

LARGEST = 2**22  # bytes of one file, the last of a log: the archive has to stay small


def write(path: Path, folders: Collection[Path], root: Path) -> None:
    """Files by their names from `root`, so that unpacking it there puts results where they belong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    with tarfile.open(beside, "w:gz", compresslevel=5) as archive:
        for file in sorted({file for folder in folders for file in folder.rglob("*") if file.is_file()}):
            data = file.read_bytes()[-LARGEST:]  # of a log that is being written, what is there
            entry = tarfile.TarInfo(str(file.relative_to(root)))
            entry.size, entry.mtime = len(data), int(file.stat().st_mtime)
            archive.addfile(entry, io.BytesIO(data))
    os.replace(beside, path)


def unpack(path: Path, root: Path, over: bool) -> set[Path]:
    """Put an archive's files where they were, `over` those that are there or beside them. Returns their folders.

    An archive that cannot be read is moved aside, for it would be written over and the run is worth more than it.
    """
    if not path.is_file():
        return set()
    try:
        with tarfile.open(path) as archive:
            members = [(one, archive.extractfile(one).read()) for one in archive.getmembers() if one.isfile()]
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        aside = path.with_name(f"{path.name}.unreadable")
        os.replace(path, aside)
        print(f"{path} cannot be read ({error}) and is now {aside.name}", flush=True)
        return set()
    folders = set()
    for member, data in members:
        file = (root / member.name).resolve()
        if not file.is_relative_to(root.resolve()):
            continue
        folders.add((root / member.name).parent)
        if over or not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            os.utime(file, (member.mtime, member.mtime))
    return folders


def replace(path: Path, text: str) -> None:
    """Write a file at once: a reader sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text)
    os.replace(beside, path)
