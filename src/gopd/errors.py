"""The two ways a command ends badly, and the exit codes users can rely on."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class BadInput(ValueError):
    """What the user gave cannot work. Raised before any work starts; the message says what, where and the mend."""


class OutOfReach(BadInput):
    """What was to be fetched over the network could not be."""


class RunFailed(RuntimeError):
    """A run that had started cannot go on. The message says why and what is safe on disk."""


class Lost(RunFailed):
    """A process of a cluster died or hung, and with it what the run was doing; it can go on from its checkpoint."""


class CalledOff(Exception):
    """Nobody wants any more what a thread is at work on."""


class Interrupted(Exception):
    """The user asked to stop; the current step was finished and saved."""
