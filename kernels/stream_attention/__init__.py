"""Attention over a rolling cache of video frames: `attend` for a chunk, `rollout_attention` for a whole clip."""

from .op import attend, rollout_attention
from .types import Rope3d, Stream

__all__ = ["Rope3d", "Stream", "attend", "rollout_attention"]
