"""The hot operations of DreamKit: a torch definition, native and Triton kernels of each, one signature.

An operation is a folder: `reference.py` (torch, the definition), `native.cpp` (CPU), `triton.py` (GPU), `op.py` (checks
and choice) and `operators.py` (what torch.compile and autograd know). `dispatch` chooses between them.
"""

from .dispatch import BackendStatus, backend_report

__all__ = ["BackendStatus", "backend_report"]
