"""What runs on a CUDA device during a call, as its profiler saw it.

In a file, and so a process, of its own: CUPTI may crash where a graph has conditional nodes (pytorch/pytorch#134308).
"""

import pytest
import torch
from gpu_networks import MODES, sampler

pytestmark = pytest.mark.gpu(real="CUPTI")


def device_events(call):
    """Names of what ran on the device, in order."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    events = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    return [event.name for event in sorted(events, key=lambda event: event.time_range.start)]


@pytest.mark.parametrize("mode", ["eager", *MODES])
def test_what_runs_between_network_calls(mode, record_property):
    """The row's kernel, and in a loop on the device its condition; the network here is one kernel."""
    ours = sampler(lambda x, t: torch.sin(x), mode)
    ours()
    ours()
    if mode != "eager":
        assert ours.report.nodes == {"kernel": 2}
    record_property(f"graph_launches_{mode}", ours.report.launches)
    assert ours.report.launches == {"eager": 0, "while": 1, "replay": ours.plan.nfe}[mode]
    names = device_events(lambda: ours(on_nan="ignore"))
    calls = [i for i, name in enumerate(names) if "sin_kernel" in name]
    if mode == "while" and len(calls) < ours.plan.nfe:
        record_property("while_kernels", f"CUPTI shows {len(calls)} of {ours.plan.nfe} network kernels")
        pytest.skip("CUPTI does not show what runs inside a WHILE node")
    assert len(calls) == ours.plan.nfe
    for a, b in zip(calls, calls[1:], strict=False):
        assert "_apply_row_kernel" in names[a + 1]
        assert b - a == (3 if mode == "while" else 2), names[a : b + 1]
