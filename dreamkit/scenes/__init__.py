"""Cameras and the 3D representations that render."""
