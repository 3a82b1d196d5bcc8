"""Which Triton kernels are compiled in the tests, and for what arguments: a file an operation, each with `SPECS`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spec:
    """One kernel with the arguments it is launched with on a GPU."""

    kernel: str
    """Its name."""
    signature: dict[str, str]
    """Triton's type of every argument that is not a constant, such as "*fp32", "*bf16", "i32" or "fp32". Pointers are
    taken to be aligned to 16 bytes, as torch's are."""
    constants: dict[str, object]
    """Values of the `tl.constexpr` arguments."""
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    """Integer arguments that are multiples of 16 at this launch (Triton specialises on it)."""
    module: str = "triton"
    """Module of the operation's folder that has it."""
    note: str = field(default="")
    """What case it is, where a kernel has more than one."""
