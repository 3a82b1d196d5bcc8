"""Rasterisation of 3D Gaussians: `rasterize(gaussians, view, settings) -> Rasterization`."""

from .op import rasterize
from .types import Gaussians, Rasterization, Settings, View

__all__ = ["Gaussians", "Rasterization", "Settings", "View", "rasterize"]
