"""Volume rendering: march rays through an occupancy grid, weigh samples by density, add up along rays, resample."""

from .op import accumulate, distortion_loss, march, render_weights, resample
from .types import OccupancyGrid, Rays, Samples

__all__ = ["OccupancyGrid", "Rays", "Samples", "accumulate", "distortion_loss", "march", "render_weights", "resample"]
