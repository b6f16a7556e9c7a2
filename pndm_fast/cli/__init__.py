"""The command `pndm-fast`: pictures and plans from a shell. It needs the extra `cli`."""

from __future__ import annotations

import sys

NEEDS = ("typer", "rich")


def main() -> None:
    """The console entry: a mistake in the installation ends like one in the arguments, in one line and with code 2."""
    try:
        from pndm_fast.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDS:
            raise
        print("error: the command line needs typer and rich: pip install 'pndm_fast[cli]'", file=sys.stderr)
        sys.exit(2)
    app(prog_name="pndm-fast")
