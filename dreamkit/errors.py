"""Every mistake a user can make, as one family of exceptions.

A `DreamkitError` says what was wrong, with what value, and what to do. The command line prints it in red and
exits with code 2, without a traceback. Anything else that escapes is a bug of ours.
"""


class DreamkitError(Exception):
    """A user's mistake or a condition of the machine, explained.

    Args:
        message: what was wrong and with what value, one sentence.
        hint: what to do about it, one sentence; shown on its own line.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} {self.hint}"


class ConfigError(DreamkitError):
    """An option out of range or of the wrong kind."""


class PromptError(DreamkitError):
    """A prompt that can't be used."""


class TeacherError(DreamkitError):
    """A diffusion model that can't be loaded or can't do what is asked."""


class SceneError(DreamkitError):
    """A scene or an asset file that can't be read, rendered or exported."""


class CheckpointError(DreamkitError):
    """A checkpoint that is corrupt, incomplete or of another kind."""


class TrainingError(DreamkitError):
    """A training that can't go on: a number in it is no longer finite."""


class RunError(DreamkitError):
    """A run folder that can't be made, found or continued."""


class BackendError(DreamkitError):
    """A kernel backend that was asked for and is not available."""
