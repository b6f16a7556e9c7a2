"""Builds `pndm_fast._C` from csrc/ with pybind11 and ninja. Everything else is in pyproject.toml."""

import runpy
import shlex
import subprocess
from pathlib import Path

import ninja
from ninja.ninja_syntax import Writer, escape
from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMPILE = [
    "-O3",
    "-ffp-contract=off",  # a fused multiply-add would make other bits than the reference
    "-fno-math-errno",  # lets sqrt be one vector instruction; its value is the same
    "-fno-trapping-math",  # lets selects be blends; values are the same
    "-Wall",
    "-Wextra",
]


def write_registers(path: Path) -> None:
    """The registers of pndm_fast/row/schema.py, for csrc/row/registers.h."""
    text = ""
    for name, register in runpy.run_path("pndm_fast/row/schema.py")["REGISTERS"].items():
        elements = " * ".join(map(str, register.shape))
        marks = f"{register.changed:d}, {register.optional:d}"
        text += f"REGISTER({name}, k{register.element.title()}, {elements}, {marks})\n"
    if not path.exists() or path.read_text() != text:  # what includes it is built again when it changes
        path.write_text(text)


class NinjaBuild(build_ext):
    """One ninja edge per source: objects build in parallel, and only what changed is built again."""

    def build_extension(self, ext: Extension) -> None:
        target, work = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        write_registers(work / "registers.inc")
        includes = [
            f"-I{Path(path).resolve()}" for path in ["csrc", work, *ext.include_dirs, *self.compiler.include_dirs]
        ]
        compile_ = escape(shlex.join([*self.compiler.compiler_so_cxx, *includes, *ext.extra_compile_args]))
        link = escape(shlex.join(self.compiler.linker_so_cxx))
        libraries = escape(shlex.join(ext.extra_link_args))
        with open(work / "build.ninja", "w") as file:
            graph = Writer(file)
            graph.rule("compile", f"{compile_} -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
            graph.rule("link", f"{link} $in {libraries} -o $out")
            objects = [f"{Path(source).stem}.o" for source in ext.sources]
            for source, item in zip(ext.sources, objects, strict=True):
                graph.build(item, "compile", str(Path(source).resolve()))
            graph.build(str(target), "link", objects)
        subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", work], check=True)


SOURCES, HEADERS = (sorted(map(str, Path("csrc").rglob(pattern))) for pattern in ("*.cpp", "*.h"))
MODULE = Pybind11Extension("pndm_fast._C", SOURCES, depends=HEADERS, cxx_std=17, extra_compile_args=COMPILE)

setup(ext_modules=[MODULE], cmdclass={"build_ext": NinjaBuild})
