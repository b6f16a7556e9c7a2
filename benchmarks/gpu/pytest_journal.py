"""A pytest plugin that keeps a journal: `-p gpu.pytest_journal --journal FILE`.

It leaves out what the journal says was begun before, and ends a process whose device can no longer be used.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu import journal

STICKY = ("device-side assert", "unspecified launch failure", "illegal memory access", "misaligned address")
LONGEST = 600  # characters of a message


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--journal", type=Path, help="the file")
    parser.addoption("--test-limit", type=float, default=60, help="seconds for a test that has no limit of its own")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout(seconds): for this test")  # pytest-timeout need not be there
    config.pluginmanager.register(Journal(config))


class Journal:
    """The hooks; `report` is what the running test has come to."""

    def __init__(self, config: pytest.Config) -> None:
        self.path: Path = config.getoption("--journal")
        self.limit: float = config.getoption("--test-limit")
        self.report: dict[str, Any] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        begun = journal.began(self.path)
        journal.add(self.path, collected=[item.nodeid for item in items])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in begun])
        items[:] = [item for item in items if item.nodeid not in begun]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and report.nodeid not in journal.began(self.path):
            journal.add(self.path, test=report.nodeid, **failure("error", str(report.longrepr)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        marker = item.get_closest_marker("timeout")
        limit = float(marker.args[0]) if marker and marker.args else self.limit
        self.report, began = {"outcome": "passed"}, time.monotonic()
        journal.add(self.path, test=item.nodeid, start=time.time(), limit=limit)
        result = yield
        line = self.report | {"seconds": round(time.monotonic() - began, 3), "properties": dict(item.user_properties)}
        journal.add(self.path, test=item.nodeid, **line)
        if line["outcome"] in ("failed", "error") and not usable(line["message"]):
            journal.add(self.path, unusable=line["message"])
            os._exit(journal.UNUSABLE)  # what is torn down in the usual way may wait for the device
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if report.skipped and self.report["outcome"] == "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.report |= {"outcome": "skipped", "message": reason.removeprefix("Skipped: ")}
        if report.failed and self.report["outcome"] == "passed":
            self.report |= failure("failed" if call.when == "call" else "error", call.excinfo.exconly(tryshort=True))
        benchmark = getattr(item, "funcargs", {}).get("benchmark")
        if call.when == "call" and report.passed and benchmark is not None:
            self.report["result"] = journal.measured(benchmark)
        return report

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        journal.add(self.path, finished=int(exitstatus))


def failure(outcome: str, text: str) -> dict[str, Any]:
    """A package that this machine lacks says nothing of what was to be tested."""
    lacking = re.search(r"ModuleNotFoundError: No module named '(\w+)[\w.]*'$", text.strip())
    if lacking and lacking[1] != "pndm_fast":
        return {"outcome": "lacking", "message": f"lacks {lacking[1]}"}
    return {"outcome": outcome, "message": text.strip()[-LONGEST:]}


def usable(message: str) -> bool:
    """Whether later tests of this process can say anything: an error of the device stays with its context."""
    torch = sys.modules.get("torch")
    if any(words in message for words in STICKY):
        return False
    if torch is None or not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(1, device="cuda").item() == 1)
    except Exception:  # whatever it is, the next test would meet it
        return False
