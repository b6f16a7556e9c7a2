"""The engine's lanes as a machine: whatever joins, leaves and moves, each sample is where its plan says."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from lanecase import SHAPE, network, other, plan, same

import pndm_fast as pf
from pndm_fast.engine.alone import Alone
from pndm_fast.row.registers import NEVER

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")
PLANS = [plan("ddim", 3), plan("ddpm", 5), plan("unipc", 4), plan("ddim", 4).with_models([0, 1, 1, 0])]
GUIDED = {"uncond": {"shift": torch.zeros(1)}, "guidance": pf.Guidance(3.0, interval=(0.4, 4.0))}
SAMPLER = pf.Sampler([network, other], shape=(1, *SHAPE))
ALONE = {}


def on_step(step):
    return step.state * 0.5 if step.index == 1 and step.rows[0].ends_step else None


class Lanes(RuleBasedStateMachine):
    @initialize(capacity=st.integers(3, 9), few=st.booleans())
    def make(self, capacity, few):
        self.engine = pf.Engine([network, other], shape=(capacity, *SHAPE), buckets=[2, capacity] if few else None)
        self.asked, self.cancelled = {}, set()

    @rule(
        batch=st.integers(1, 3),
        which=st.integers(0, 3),
        guided=st.booleans(),
        mixed=st.booleans(),
        watched=st.booleans(),
        priority=st.integers(0, 1),
    )
    def add(self, batch, which, guided, mixed, watched, priority):
        key = batch, which, guided, mixed, watched
        plans = [PLANS[(which + b) % 3] for b in range(batch)] if mixed else PLANS[which]
        watch = on_step if watched and not mixed and which < 2 else None
        words = {"plan": plans, "seeds": range(batch), "cond": {"shift": torch.arange(1.0, 1 + batch)}}
        request = pf.Request(**words, **(GUIDED if guided else {}), on_step=watch)
        if key not in ALONE:
            ALONE[key] = SAMPLER.run(request)
        self.asked[self.engine.add(request, priority=priority)] = key

    @rule(count=st.integers(1, 4))
    def step(self, count):
        for _ in range(count):
            for one in self.engine.step():
                key = self.asked.pop(one.id)
                if one.id in self.cancelled:
                    assert isinstance(one.error, pf.Cancelled)
                else:
                    same(one.result, ALONE[key])

    @rule(which=st.integers(0, 20))
    def cancel(self, which):
        if self.asked:
            number = sorted(self.asked)[which % len(self.asked)]
            assert self.engine.cancel(number)
            self.cancelled.add(number)

    @invariant()
    def everybody_is_where_he_should_be(self):
        engine = getattr(self, "engine", None)
        if engine is None:
            return
        assert len(engine._known) == len(self.asked) == engine.running + engine.waiting
        running = 0
        for group in engine._groups._groups.values():
            assert not isinstance(group, Alone)
            running += group.lanes
            places = {(id(m), b): lane for m in group.members for b, lane in enumerate(m.lanes) if lane >= 0}
            assert [places[id(m), b] for m, b in group._owners] == list(range(group.lanes)) and len(
                places
            ) == group.lanes
            if not group.lanes:
                continue
            resident = group.resident
            rows = resident.workspace.registers.row.tolist()
            assert not any(rows[group.lanes :])
            for lane, (m, b) in enumerate(group._owners):
                done = group.ran - m._since
                entry = m.entries[b]
                assert rows[lane] == entry.base + m.positions.at[b] + done < entry.end - 1
                assert entry.plan is m.call.plans[b] and entry in resident._written
                assert resident.workspace.registers.first_bad[lane] == NEVER
            assert group.ran < group._due == min(m.due for m in group.members)
            assert all(not any(r.workspace.registers.row) for r in group._residents.values() if r is not resident)
        assert running <= engine.capacity

    def teardown(self):
        engine = getattr(self, "engine", None)
        while engine is not None and not engine.idle:
            self.step(1)
        assert engine is None or not self.asked


TestLanes = Lanes.TestCase
TestLanes.settings = settings(deadline=None, stateful_step_count=30)
