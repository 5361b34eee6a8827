"""Calling gradio so that it leaves no event loops behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_a_loop(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function in an event loop, the one that runs already or one of its own.

    Without a running one, gradio makes a loop for each of its locks, with files of the system that
    are never closed.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(called(*args, **kwargs))
        return function(*args, **kwargs)

    async def called(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    return wrapped
