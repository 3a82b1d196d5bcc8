"""What `dreamkit bench kernels` runs: cases of every operation, timed against their rivals in one process."""

from .cases import CASES, Case
from .machine import machine
from .measure import Row, run_case

__all__ = ["CASES", "Case", "Row", "machine", "run_case"]
