"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED = 3600.0  # seconds after which nobody writes a file any more


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, which it replaces if the block succeeds: readers never see half a file.

    A link is followed. A device or a pipe, which must not be replaced, is written to as it is.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 is for secrets
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # else a machine that loses power may keep the name without the contents
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path, name: str) -> None:
    """Remove what `atomic_path` was writing there in processes that were killed.

    Files of the last hour stay: another process may be writing them.

    Args:
        name: of the files that were to be, `*` being any part of it.
    """
    for file in folder.glob(f".{name}.*.tmp"):
        with suppress(FileNotFoundError):  # another process is sweeping too
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink()
