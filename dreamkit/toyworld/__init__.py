"""The procedural world the embedded teacher learns: shapes, captions, renders."""
