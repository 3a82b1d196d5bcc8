"""Which backends the tests of the kernels can run here."""

from __future__ import annotations

import pytest
from dreamkit_kernels import dispatch

needs_native = pytest.mark.skipif(not dispatch._state("native")[0], reason=dispatch._state("native")[1])
needs_triton = pytest.mark.skipif(not dispatch._state("triton")[0], reason=dispatch._state("triton")[1])
"""Without a GPU Triton's kernels run in its interpreter, a millisecond a program."""
