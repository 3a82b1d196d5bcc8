"""Multiresolution hash encoding: `encode(positions, table, grid)`."""

from .op import encode
from .types import HashGrid, Level

__all__ = ["HashGrid", "Level", "encode"]
