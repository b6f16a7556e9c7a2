"""How far a call has come, told to terminals and to files."""

from __future__ import annotations

import io
import os
import pty
import select
import sys

import pytest

from pndm_fast.runtime import progress
from pndm_fast.runtime.progress import progress_bar


class Clock:
    """Seconds that pass by a fixed amount at each question."""

    def __init__(self, monkeypatch, step):
        self.now = 0.0
        self.step = step
        monkeypatch.setattr(progress.time, "monotonic", self)

    def __call__(self):
        self.now += self.step
        return self.now


def lines(total, capsys):
    with progress_bar(True, "ddim", total) as advance:
        for _ in range(total):
            advance()
    out, err = capsys.readouterr()
    assert out == "" and all(character.isprintable() or character == "\n" for character in err)
    return err.splitlines()


def test_a_log_file_gets_a_line_each_tenth(monkeypatch, capsys):
    Clock(monkeypatch, 1.0)
    told = lines(59, capsys)
    assert len(told) == 10
    assert told[0] == "ddim: 6 of 59 network calls (10 %), 53 s left"
    assert told[-1] == "ddim: 59 of 59 network calls (100 %), 59.0 s"


@pytest.mark.parametrize("total, count", [(1, 1), (3, 3), (10, 10), (1000, 10)])
def test_few_calls_get_a_line_each(total, count, capsys):
    assert len(lines(total, capsys)) == count


def test_a_slow_call_gets_a_line_a_minute(monkeypatch, capsys):
    Clock(monkeypatch, 25.0)
    assert len(lines(100, capsys)) > 30


def test_nothing_is_told_unasked(monkeypatch, capsys):
    with progress_bar(False, "ddim", 5) as advance:
        advance()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(True, "ddim", 5) as advance:
        advance()


def test_a_reader_that_is_gone_ends_no_call(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(True, "ddim", 3) as advance:
        advance()
        stream.close()
        advance()


@pytest.mark.parametrize("kind", ["bar", "without rich", "dumb"])
def test_terminals(kind, monkeypatch):
    """A bar in a terminal that can draw one, with rich; else the lines of a file."""
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    if kind == "without rich":
        for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rich", None)
    host, terminal = pty.openpty()
    with open(terminal, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar(True, "ddim", 2) as advance:
            advance()
            advance()
        told = ""
        while select.select([host], [], [], 0.05)[0]:
            told += os.read(host, 100_000).decode()
    os.close(host)
    assert ("\x1b" in told) == (kind == "bar") and "ddim" in told
    assert ("2 of 2 network calls (100 %)" in told) == (kind != "bar")
