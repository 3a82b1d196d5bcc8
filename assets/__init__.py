"""Embedded weights, example prompts and pictures, found with importlib.resources."""
