"""The points that a GPU is to show, in order; after them what is only reported."""

from __future__ import annotations

from gpu.steps import PROFILED, SMOKE
from gpu.table import (
    Judge,
    Line,
    Results,
    benchmark,
    decision,
    launches,
    memcheck,
    modes,
    properties,
    row_cost,
    smoke,
    tests,
)

EQUAL = ("test_graph_is_eager", "test_guided_graph_is_eager")
ALONE, DIFFUSERS, COMPILED = "test_over_the_network_alone", "test_against_diffusers", "test_against_reduce_overhead"
BOTH = ("while", "replay")
CASES = ("cifar-B16", "cifar-B256", "sd-B1", "sd-B4")

ASKED: tuple[Judge, ...] = (
    *(
        tests(f"graph == eager bit for bit, {mode}, {dtype}", EQUAL, (mode, dtype))
        for mode in BOTH
        for dtype in ("fp32", "bf16")
    ),
    *(tests(f"1,000 calls without growth, {mode}", ("test_a_thousand_calls_do_not_grow",), (mode,)) for mode in BOTH),
    launches("while: 1 launch, 0 synchronizations", "while"),
    launches("replay: nfe launches, none from Python, 0 synchronizations", "replay"),
    *(tests(f"a call does not synchronize, {mode}", ("call_does_not_synchronize",), (mode,)) for mode in BOTH),
    benchmark("sample(50) / network alone, CIFAR-size, batch 1", "gpu_sample", f"{ALONE}[cifar-B1]"),
    benchmark("diffusers eager / ours, CIFAR-size, batch 1", "gpu_sample", f"{DIFFUSERS}[cifar-B1]"),
    benchmark("reduce-overhead / ours compiled, CIFAR-size, batch 1", "gpu_sample", f"{COMPILED}[cifar-B1]"),
    benchmark("share of the copy's bandwidth, 64M bf16 row", "gpu_speed", "test_large_row[bf16]"),
    benchmark("eager guidance and PNDM in fp32 / ours, 64M bf16", "gpu_speed", "test_large_guided_row[fp32]"),
    benchmark("eager guidance and PNDM in bf16 / ours, 64M bf16", "gpu_speed", "test_large_guided_row[bf16]"),
    benchmark("with noise / without, 64M bf16", "gpu_speed", "test_large_row_with_noise[bf16]"),
    modes("default / best mode, CIFAR-size, batch 1", "test_modes[cifar-B1]"),
    modes("default / best mode, launch-bound, batch 1", "test_modes[small-B1]"),
    decision("replay / while on a launch-bound network, wanted >= 1.05", "test_modes[small-B1]"),
    memcheck("memcheck", "memcheck"),
    *(
        tests(f"swapped weights are seen, {mode}", ("test_changed_weights_change_the_next_image",), (mode,))
        for mode in BOTH
    ),
)
MORE: tuple[Judge, ...] = (
    row_cost("a row's cost beside the network, wanted <= 5 us", f"{ALONE}[cifar-B1]"),
    tests("one kernel between network calls", (PROFILED,), step="profiler"),
    tests("no new capture for another plan, seed, scale, condition", ("test_what_needs_no_new_capture",)),
    tests("10^5 rows at mixed rows, 64 programs a sample", ("test_a_hundred_thousand",)),
    tests("rows of blocks: the CPU's bits", ("test_same_bits_as_the_cpu_in_phase_space",)),
    tests("rows of blocks: graph == eager", ("test_phase_space_graph_is_eager",)),
    benchmark("share of the copy's bandwidth, rows of blocks, 64M bf16", "gpu_speed", "test_large_phase_row[bf16]"),
    *(benchmark(f"diffusers eager / ours, {case}", "gpu_sample", f"{DIFFUSERS}[{case}]") for case in CASES),
    *(benchmark(f"reduce-overhead / ours compiled, {case}", "gpu_sample", f"{COMPILED}[{case}]") for case in CASES),
    benchmark("first request, unprepared / prepared, CIFAR-size", "gpu_sample", "test_first_request[cifar-B1]"),
    *(modes(f"default / best mode, {case}", f"test_modes[{case}]") for case in ("small-B16", "cifar-B16")),
    memcheck("memcheck of a loop on the device", "memcheck-while"),
    *(smoke(name) for name in SMOKE),
)


def judged(results: Results) -> list[Line]:
    """Every point."""
    return [*(judge(results) for judge in (*ASKED, *MORE)), *properties(results)]
