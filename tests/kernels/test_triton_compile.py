"""Every Triton kernel compiles for three generations of GPUs, within what they have. No GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

FOLDER = Path(__file__).parent
OPERATIONS = sorted(path.stem for path in (FOLDER / "triton_specs").glob("[!_]*.py"))
MOST_SHARED = 232_448
"""Bytes of shared memory a block of an H100 or H200 may have."""
CASES = [
    pytest.param(operation, capability, marks=[] if capability == 90 else [pytest.mark.slow])
    for capability in (80, 90, 100)
    for operation in OPERATIONS
]


@pytest.mark.parametrize(("operation", "capability"), CASES)
def test_it_fits_the_gpu(operation: str, capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(FOLDER / "compile_triton.py"), operation, str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = json.loads(done.stdout.splitlines()[-1])
    assert kernels
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        assert kernel["registers"] <= 255, kernel
        assert kernel["shared"] <= MOST_SHARED, kernel
