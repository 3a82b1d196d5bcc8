"""Reading the noise a model was trained with from a diffusers scheduler configuration.

Only what describes the noise is read: the betas, zero terminal SNR, the shift of a flow, the prediction type. How a
scheduler spaces its sampling steps is a choice of the sampler's, not a property of the model, and is ignored.
"""

import inspect
from collections.abc import Mapping
from math import exp
from typing import Any, Literal

from dreamkit.diffusion.schedule import NoiseSchedule, PredictionKind
from dreamkit.errors import TeacherError

_DIFFUSERS_KINDS: dict[str, PredictionKind] = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
_DDPM_CLASSES = frozenset(
    {
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "DDIMScheduler",
        "DDIMParallelScheduler",
        "DDIMInverseScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverSinglestepScheduler",
        "DPMSolverSDEScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
        "SASolverScheduler",
        "RePaintScheduler",
        "LCMScheduler",
        "TCDScheduler",
    }
)
_FLOW_CLASSES = frozenset(
    {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"}
)
_BETA_FIELDS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")


def schedule_from_config(config: Mapping[str, Any], image_tokens: int | None = None) -> NoiseSchedule:
    """Build the schedule that a scheduler configuration describes; see `NoiseSchedule.from_diffusers`."""
    family = _family(config)
    if family == "flow":
        return _flow_from_diffusers(config, image_tokens)
    name = config.get("_class_name", "")
    if family is None:
        known = ", ".join(sorted(_DDPM_CLASSES | _FLOW_CLASSES))
        raise TeacherError(
            f"The noise schedule of {name or 'a nameless scheduler'} is not one of the supported kinds.",
            f"Supported: {known}, none with continuous (EDM) timesteps.",
        )
    fields = {**_class_defaults(name, config), **config}
    trained = fields.get("trained_betas")
    return NoiseSchedule.ddpm(
        betas=fields["beta_schedule"] if trained is None else trained,
        steps=fields["num_train_timesteps"],
        beta_start=fields["beta_start"],
        beta_end=fields["beta_end"],
        zero_terminal_snr=bool(fields.get("rescale_betas_zero_snr")),
    )


def prediction_kind(config: Mapping[str, Any]) -> PredictionKind:
    """Read what a network predicts from its diffusers scheduler configuration.

    Args:
        config: `scheduler.config` or the content of scheduler_config.json; diffusers' own default is epsilon.

    Raises:
        TeacherError: a prediction type that has no conversion.
    """
    if "prediction_type" not in config and _family(config) == "flow":
        return "flow"
    name = config.get("prediction_type", "epsilon")
    if name not in _DIFFUSERS_KINDS:
        raise TeacherError(
            f"The scheduler's prediction type {name!r} is unknown.", f"Known: {', '.join(_DIFFUSERS_KINDS)}."
        )
    return _DIFFUSERS_KINDS[name]


def _family(config: Mapping[str, Any]) -> Literal["ddpm", "flow"] | None:
    """Which kind of noise a configuration describes, `None` for one that is neither.

    The class name decides. A scheduler that was never saved has none: then its fields do, and those of the schedulers
    that twist the noise further (EDM's sigma_data, CogVideoX's snr_shift_scale) rule both kinds out.
    """
    name = config.get("_class_name", "")
    is_twisted = "sigma_data" in config or "snr_shift_scale" in config or config.get("timestep_type") == "continuous"
    if is_twisted or (name and name not in _DDPM_CLASSES | _FLOW_CLASSES):
        return None
    has_betas = name in _DDPM_CLASSES or (not name and "beta_schedule" in config)
    if has_betas:
        # Many-purpose solvers (UniPC, DPM-Solver, ...) can be set up for flow matching.
        is_flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        return "flow" if is_flow else "ddpm"
    return "flow" if name in _FLOW_CLASSES or "shift" in config else None


def _class_defaults(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a field left out of the configuration means, by the scheduler's own signature (classes differ)."""
    if set(_BETA_FIELDS) <= set(config):
        return {}
    import diffusers

    parameters = inspect.signature(getattr(diffusers, name or "DDPMScheduler").__init__).parameters
    return {field: parameters[field].default for field in _BETA_FIELDS if field in parameters}


def _flow_from_diffusers(config: Mapping[str, Any], image_tokens: int | None) -> NoiseSchedule:
    """The flow schedule of a configuration; resolution-dependent shifts are linear in the number of tokens."""
    if config.get("invert_sigmas"):
        raise TeacherError("This scheduler runs its flow backwards (invert_sigmas), which has no noise schedule here.")
    shift = float(config.get("flow_shift", config.get("shift", 1.0)))
    if config.get("use_dynamic_shifting"):
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        tokens = low if image_tokens is None else image_tokens
        mu = base + (top - base) * (tokens - low) / (high - low)
        shift = exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
    return NoiseSchedule.flow(shift, config.get("num_train_timesteps", 1000))
