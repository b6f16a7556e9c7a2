"""Ahead-of-time compilation of the Triton kernels and a reader of their machine code; no GPU needed.

`python aot.py` compiles the variants named in its arguments and prints JSON: the tests run it in a process of its own,
because TRITON_INTERPRET is read when Triton is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = (80, 90, 100)

# What differs from fp32 throughout: dtypes of slots, network and time; a guided call; a separate network input; z from
# a pointer; channels-last numbering; n that is no multiple of 16. In phase space: n / 2 that is one of 4 alone, or not.
# A guided row of a wide line may keep the unconditional output too.
VARIANTS = {
    "fp32": dict(),
    "fp32-guided": dict(guided=True, net_in=True),
    "mixed": dict(network="bf16", net_in=True),
    "mixed-guided": dict(network="bf16", net_in=True, guided=True),
    "bf16": dict(slots="bf16", network="bf16", net_in=True, time="i64"),
    "fp16": dict(slots="fp16", network="fp16", net_in=True),
    "z": dict(z=True),
    "channels-last": dict(scattered=True),
    "z-guided": dict(z=True, guided=True, net_in=True),
    "odd": dict(aligned=False),
    "odd-bf16": dict(network="bf16", slots="bf16", net_in=True, aligned=False),
    "phase": dict(width=128),
    "phase-guided": dict(width=128, guided=True, net_in=True),
    "phase-mixed": dict(width=128, network="bf16", net_in=True),
    "phase-bf16": dict(width=128, slots="bf16", network="bf16", net_in=True, guided=True, time="i64"),
    "phase-z": dict(width=128, z=True),
    "phase-fours": dict(width=128, aligned=False),
    "phase-odd": dict(width=128, aligned=False, scattered=True),
    "wide": dict(width=64),
    "wide-bf16": dict(width=64, slots="bf16", network="bf16", net_in=True),
    "wide-guided": dict(width=64, guided=True, network="bf16", net_in=True),
    "wide-guided-bf16": dict(width=64, guided=True, slots="bf16", network="bf16", net_in=True),
    "wide-z-guided": dict(width=64, guided=True, z=True, net_in=True),
    "wide-channels-last": dict(width=64, scattered=True),
}

# Of the kernel before the first row: what samples start from, where that is not the seeds.
BEGINNINGS = {
    "begin": dict(),
    "begin-guided": dict(network="bf16", net_in=True, guided=True),
    "begin-image": dict(sources=("image",)),
    "begin-state": dict(sources=("state", "z"), net_in=True),
    "begin-channels-last": dict(scattered=True),
    "begin-wide": dict(width=64, sources=("noise",), net_in=True),
    "begin-phase": dict(width=128),
    "begin-phase-image": dict(width=128, sources=("image", "noise"), net_in=True),
}


def _source(kernel, slots="fp32", network="fp32", time="fp32", guided=False, net_in=False, z=False,
            scattered=False, aligned=True, width=32, ticket=True):  # fmt: skip
    from pndm_fast.row.schema import REGISTERS

    kinds = {"state": "fp32", "slot": slots, "time": time, "network": network, "int32": "i32", "int64": "i64"}
    signature = {f"{name}_ptr": f"*{kinds[register.element]}" for name, register in REGISTERS.items()}
    signature |= {"table_ptr": "*fp32", "out_ptr": f"*{network}", "uncond_ptr": f"*{network}", "z_ptr": "*fp32"}
    optional = {"net_in_ptr": net_in, "uncond_ptr": guided, "z_ptr": z, "done_ptr": ticket}
    return _made(kernel, signature, optional, guided, scattered, aligned, width)


def _beginning(kernel, network="fp32", guided=False, net_in=False, scattered=False, width=32, sources=()):
    given = ("noise", "state", "image", "z")
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "row_ptr": "*i32", "net_in_ptr": f"*{network}"}
    signature |= {"seeds_ptr": "*i64", "table_ptr": "*fp32", "lines_ptr": "*i32"}
    signature |= {f"{name}_ptr": "*fp32" for name in given}
    optional = {"net_in_ptr": net_in, **{f"{name}_ptr": name in sources for name in given}}
    return _made(kernel, signature, optional, guided, scattered, True, width)


def _made(kernel, signature, optional, guided, scattered, aligned, width):
    from pndm_fast.kernels.apply_row import form_of
    from triton.compiler import ASTSource

    from pndm_fast.row.table import LAYOUTS

    signature |= dict.fromkeys(("n", "stride", "batch", "channels"), "i32")
    constants = {
        "WIDTH": width,
        "CFG_COPIES": 2 if guided else 1,
        "SCATTERED": scattered,
        "BLOCK": form_of(LAYOUTS[width])[0],
    }
    constants |= dict.fromkeys(name for name, given in optional.items() if not given)
    signature |= dict.fromkeys(constants, "constexpr")
    assert list(signature) == kernel.arg_names
    wide = [name for name, kind in signature.items() if kind.startswith("*")] + ["stride"] + ["n"] * aligned
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in wide}
    return ASTSource(kernel, signature, constants, attributes)


def compile_variant(name: str, architecture: int) -> dict:
    """One kernel compiled as the launcher has it compiled: its Triton IR, and its machine code as lines of text."""
    import triton
    from pndm_fast.kernels.apply_row import _apply_row_kernel, form_of
    from pndm_fast.kernels.begin import _begin_kernel
    from triton.backends.compiler import GPUTarget

    from pndm_fast.row.table import LAYOUTS

    begins = name in BEGINNINGS
    source = _beginning(_begin_kernel, **BEGINNINGS[name]) if begins else _source(_apply_row_kernel, **VARIANTS[name])
    _, options = form_of(LAYOUTS[source.constants[(source.fn.arg_names.index("WIDTH"),)]])
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
        use = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True)
    resources = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", use.stdout + use.stderr))
    return {
        "sass": [m[1].strip() for m in re.finditer(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", code)],
        "resources": {key: int(value) for key, value in resources.items()},
        "ttir": compiled.asm["ttir"],
        "ptx": compiled.asm["ptx"],
    }


def compile_all(pairs: list[tuple[str, int]], cache: Path) -> dict[tuple[str, int], dict]:
    """Compile in a process without the interpreter, caching under `cache`."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    arguments = [f"{name}:{architecture}" for name, architecture in pairs]
    done = subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ahead-of-time compilation failed:\n{done.stderr[-4000:]}")
    return dict(zip(pairs, json.loads(done.stdout), strict=True))


if __name__ == "__main__":
    chosen = [argument.rsplit(":", 1) for argument in sys.argv[1:]]
    print(json.dumps([compile_variant(name, int(architecture)) for name, architecture in chosen]))
