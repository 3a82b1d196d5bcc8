"""Compile an operation's Triton kernels for a GPU that need not be there, and print what they take, as JSON.

    python tests/kernels/compile_triton.py modulate 90

A process of its own: one that interprets kernels can't compile them.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_specs import Spec

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_spec(operation: str, spec: Spec, capability: int) -> dict[str, object]:
    """Registers a thread, bytes spilled and bytes of shared memory of one kernel."""
    kernel = getattr(importlib.import_module(f"dreamkit_kernels.{operation}.{spec.module}"), spec.kernel)
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in spec.constants:
            signature[name] = "constexpr"
            constants[index,] = spec.constants[name]
            continue
        signature[name] = spec.signature[name]
        if signature[name].startswith("*") or name in spec.divisible:
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = assemble(compiled.asm["ptx"], capability)
    return {
        "kernel": spec.kernel + (f" ({spec.note})" if spec.note else ""),
        "registers": registers,
        "spilled": spilled,
        "shared": compiled.metadata.shared,
    }


def assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes that ptxas reports."""
    program = PTXAS / ("ptxas-blackwell" if capability >= 100 and (PTXAS / "ptxas-blackwell").exists() else "ptxas")
    suffix = "a" if capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [str(program), "-v", f"--gpu-name=sm_{capability}{suffix}", str(file), "-o", str(file) + ".cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"ptxas failed: {done.stderr}")
    registers = int(re.search(r"Used (\d+) registers", done.stderr)[1])
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    return registers, int(spills[1]) + int(spills[2])


if __name__ == "__main__":
    operation, capability = sys.argv[1], int(sys.argv[2])
    specs = importlib.import_module(f"triton_specs.{operation}").SPECS
    print(json.dumps([compile_spec(operation, spec, capability) for spec in specs]))
