"""Ctrl-C while a run is going: the first one lets the step end, the second one does not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from gopd.console import Display


@dataclass
class Stop:
    """Set by Ctrl-C; the loop looks at it between steps."""

    requested: bool = False


@contextmanager
def finish_step_on_interrupt(display: Display, stop: Stop) -> Iterator[None]:
    """Inside, the first Ctrl-C asks the loop to stop after the step; the second interrupts at once.

    Only the main thread gets signals: in another one Ctrl-C stays the caller's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        display.say("interrupted: finishing this step and saving it; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
