"""Sets of posed pictures, read and written: nerfstudio's transforms.json, Blender's synthetic sets, COLMAP."""

from dreamkit.captures.options import CaptureOptions
from dreamkit.captures.reading import CaptureSet, read_capture, read_capture_set

__all__ = ["CaptureOptions", "CaptureSet", "read_capture", "read_capture_set"]
