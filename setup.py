"""Finds the packages and builds the native kernels (`dreamkit_kernels._native`); the rest is in pyproject.toml.

One C++17 extension bound with nanobind: no CMake, no torch at build time, so an isolated `pip install .` takes
seconds. A machine without a C++ compiler still installs: the failure is one printed line, and the torch reference
backend is what remains (`dreamkit doctor` says so).
"""

from __future__ import annotations

import sys
from pathlib import Path

import nanobind
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

FOLDERS = {"dreamkit": "dreamkit", "dreamkit_kernels": "kernels", "dreamkit_apps": "apps", "dreamkit_assets": "assets"}
"""Import name -> folder: the bare names would collide once installed."""


class OptionalBuild(build_ext):
    """`build_ext` that reports a failed compilation and carries on."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; without a working compiler, say so and leave the reference backend."""
        try:
            super().build_extension(ext)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            if len(reason) > 120:  # a whole compiler command
                reason = f"{reason[:50]} ... {reason[-60:]}"
            print(
                f"dreamkit: the native kernels were NOT built ({reason}), the slower torch reference will be used. "
                "Install a C++17 compiler (g++ or clang++) and install again to get them.",
                file=sys.stderr,
            )


def compiler_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags. No -march=native: SIMD is chosen at run time by target_clones."""
    if sys.platform == "win32":
        return ["/std:c++17", "/O2", "/EHsc"], []
    compile_flags = [
        "-std=c++17",
        "-O3",
        "-g0",
        "-fvisibility=hidden",
        "-fno-strict-aliasing",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        "-Wno-psabi",  # vectors wider than the baseline's only pass between inlined functions
    ]
    # Apple's clang ships without OpenMP: the kernels run on one thread there.
    threads = [] if sys.platform == "darwin" else ["-fopenmp"]
    return compile_flags + threads, threads


def native_extension() -> Extension:
    """The extension: every .cpp under kernels/ with nanobind's runtime; headers make it rebuild."""
    nanobind_root = Path(nanobind.__file__).parent
    compile_flags, link_flags = compiler_flags()
    return Extension(
        "dreamkit_kernels._native",
        sources=sorted(path.as_posix() for path in Path("kernels").rglob("*.cpp")),
        depends=sorted(path.as_posix() for path in Path("kernels").rglob("*.h")),
        include_dirs=[str(nanobind_root / folder) for folder in ("include", "src", "ext/robin_map/include")],
        extra_compile_args=compile_flags,
        extra_link_args=link_flags,
        language="c++",
        optional=True,
    )


def packages() -> list[str]:
    """Every package under `FOLDERS`, by its import name."""
    return [
        name for root, folder in FOLDERS.items() for name in (root, *(f"{root}.{p}" for p in find_packages(folder)))
    ]


setup(packages=packages(), package_dir=FOLDERS, ext_modules=[native_extension()], cmdclass={"build_ext": OptionalBuild})
