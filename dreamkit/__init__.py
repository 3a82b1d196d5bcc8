"""DreamKit: a sentence in, a 3D asset out, by distilling pretrained diffusion models.

Importing this package is light: no torch, no diffusers, no build. Heavy libraries load where they are used.
"""

from dreamkit._version import __version__

__all__ = ["__version__"]
