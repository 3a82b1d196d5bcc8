"""Adam over the rows of several tensors at once, leaving out the rows that a mask leaves out."""

from .op import Adam, adam_step

__all__ = ["Adam", "adam_step"]
