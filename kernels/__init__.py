"""The hot operations of DreamKit: a torch definition and native kernels of each, one signature.

An operation is a folder: `reference.py` (torch, the definition), `native.cpp` (CPU) and `op.py` (checks, dispatch and
autograd). `dispatch` chooses between them.
"""

from .dispatch import BackendStatus, backend_report

__all__ = ["BackendStatus", "backend_report"]
