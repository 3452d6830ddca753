"""A function that runs to its end by itself, taken a part at a time: at `hand_over` it waits until whoever runs it goes on.

    run = Paused(trainer.train)
    message = run.resume()              what the function hands over next, from however deep inside
    message = run.resume(answer)        and `hand_over` there returns `answer`

It runs in a greenlet: a stack of its own in the same thread, so that whatever torch keeps for a thread (dispatch modes, autocast,
whether gradients are wanted) holds inside as it does outside. What the function raises, `resume` raises. When nobody holds the
Paused any more, the function ends where it waits: what it holds must not hold the Paused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

FRAMES = 64
"""So many frames of C torch walks back for every error that it makes (c10/util/Backtrace.h)."""


class Paused:
    def __init__(self, function: Callable[[], Any]) -> None:
        from greenlet import greenlet

        self._inside: Any = greenlet(partial(_far_inside, function, FRAMES))
        self._began = False

    def resume(self, answer: Any = None) -> Any:
        """Runs the function to its next `hand_over`, and gives what is handed over."""
        from greenlet import getcurrent

        self._inside.parent = getcurrent()
        message = self._inside.switch(*[answer] if self._began else [])
        self._began = True
        if self._inside.dead:
            raise RuntimeError("the trainer ended by itself, before the job's last step")
        return message


def _far_inside(function: Callable[[], Any], frames: int) -> Any:
    """Runs the function with at least so many frames of C before its own. Before those of a greenlet there is whatever the thread
    has there meanwhile, and to walk into that would end the process."""
    return partial(_far_inside, function, frames - 1)() if frames else function()


def hand_over(message: Any) -> Any:
    """Called by the function: waits, and gives what it is resumed with."""
    from greenlet import getcurrent

    return getcurrent().parent.switch(message)
