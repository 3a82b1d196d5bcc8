"""Adding noise, and the residual of score distillation in one pass over its inputs."""

from .op import Coefficients, add_noise, guided_residual

__all__ = ["Coefficients", "add_noise", "guided_residual"]
