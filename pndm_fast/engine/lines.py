"""Where plans' lines stand in a group's tables, which are all alike."""

from __future__ import annotations

from dataclasses import dataclass

from pndm_fast.plan.plan import Plan

FIRST = 1  # line 0 is a halt row, at which idle lanes stand


@dataclass(eq=False)
class Entry:
    """A plan's place.

    Attributes:
        base: of its first line; end: behind its halt row.
        users: samples at its rows.
    """

    plan: Plan
    base: int
    end: int
    users: int = 0


class Lines:
    """An allocator of table lines: what nobody uses stays until its place is wanted, the longest unused first.

    Args:
        rows: of the tables.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._entries: dict[int, Entry] = {}  # by the plan's identity, the last one used at the end

    def take(self, plan: Plan) -> Entry | None:
        """For one more sample; None where there is no room."""
        entry = self._entries.pop(id(plan), None)
        if entry is None:
            base = self._room(plan.nfe + 1)
            if base is None:
                return None
            entry = Entry(plan, base, base + plan.nfe + 1)
        self._entries[id(plan)] = entry
        entry.users += 1
        return entry

    def give(self, entry: Entry) -> None:
        """One sample less."""
        entry.users -= 1

    def _room(self, count: int) -> int | None:
        while True:
            end = FIRST
            for entry in sorted(self._entries.values(), key=lambda entry: entry.base):
                if entry.base - end >= count:
                    return end
                end = entry.end
            if self.rows - end >= count:
                return end
            idle = next((key for key, entry in self._entries.items() if not entry.users), None)
            if idle is None:
                return None
            del self._entries[idle]
