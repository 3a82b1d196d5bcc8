"""Layer norm modulated by a condition: `modulate(x, scale, shift)`."""

from .op import modulate

__all__ = ["modulate"]
