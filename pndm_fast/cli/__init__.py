"""The command `pndm-fast`: pictures and plans from a shell. It needs the extra `cli`."""

from __future__ import annotations

import atexit
import sys

from pndm_fast.cli import signals

NEEDS = "typer"


def main() -> None:
    """The console entry: a mistake in the installation ends like one in the arguments, in one line and with code 2."""
    with signals.at_once():
        try:
            from pndm_fast.cli.app import app
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != NEEDS:
                raise
            print("error: the command line needs typer: pip install 'pndm_fast[cli]'", file=sys.stderr)
            sys.exit(2)
        atexit.register(signals.forget)
        app(prog_name="pndm-fast")
