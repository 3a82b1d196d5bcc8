"""What can go wrong with a queue of jobs, as kinds that a web page or a command line can tell apart."""

from __future__ import annotations

from dreamkit.errors import DreamkitError


class QueueError(DreamkitError):
    """The queue's file can't be read or written."""


class QueueFullError(DreamkitError):
    """The queue takes no more jobs, of anybody or of this user."""


class NotFoundError(DreamkitError):
    """A job, run or file that is not there, or that nobody may see."""


class JobStateError(DreamkitError):
    """A job or run that is in no state for what is asked."""
