"""Differentiable rasterisation of triangle meshes: `rasterize`, `interpolate`, `antialias`."""

from .op import antialias, interpolate, mesh_edges, rasterize
from .types import Fragments

__all__ = ["Fragments", "antialias", "interpolate", "mesh_edges", "rasterize"]
