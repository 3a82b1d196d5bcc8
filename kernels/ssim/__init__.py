"""Structural similarity: `ssim(x, y)`."""

from .op import ssim

__all__ = ["ssim"]
