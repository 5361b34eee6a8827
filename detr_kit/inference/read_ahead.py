"""Working on the next items of an iterable in other threads, in order and not too far ahead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_END = object()
_POLL_SECONDS = 0.1
_MOST_WORKERS = 8


def read_ahead(
    items: Iterable[S], work: Callable[[S], T], *, ahead: int
) -> Iterator[tuple[S, Callable[[], T]]]:
    """Yield every item with a function that returns `work(item)`, or raises what that raised.

    Items are fetched and worked on in other threads, at most about `ahead` before they are asked
    for; with 0, everything happens where it is asked for. What the iterable itself raises is
    raised here. Where the iterator is closed early, nothing more is fetched.
    """
    if ahead < 1:
        for item in items:
            yield item, partial(work, item)
        return
    ready: Queue[Any] = Queue(maxsize=ahead)
    stop = Event()
    pool = ThreadPoolExecutor(min(ahead, os.cpu_count() or 1, _MOST_WORKERS), "detr_kit-read")
    # A daemon: a camera that gives no picture any more must not keep a program from ending.
    feeder = Thread(
        target=_feed, args=(items, work, pool, ready, stop), name="detr_kit-feed", daemon=True
    )
    feeder.start()
    try:
        while (taken := _take(ready)) is not _END:
            if isinstance(taken, BaseException):
                raise taken
            item, future = taken
            yield item, future.result
    finally:
        stop.set()
        feeder.join(timeout=2 * _POLL_SECONDS)
        pool.shutdown(wait=not feeder.is_alive(), cancel_futures=True)


def _take(ready: Queue[Any]) -> Any:
    """Wait for an item in a way that Ctrl-C can end on every system."""
    while True:
        with suppress(Empty):
            return ready.get(timeout=_POLL_SECONDS)


def _feed(
    items: Iterable[S],
    work: Callable[[S], T],
    pool: ThreadPoolExecutor,
    ready: Queue[Any],
    stop: Event,
) -> None:
    last: Any = _END
    try:
        for item in items:
            if stop.is_set() or not _put(ready, (item, pool.submit(work, item)), stop):
                return
    except BaseException as error:  # raised again where the items are asked for
        last = error
    _put(ready, last, stop)


def _put(ready: Queue[Any], item: Any, stop: Event) -> bool:
    """Wait for a place; return False where nobody will ask for the item any more."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
        except Full:
            continue
        return True
    return False
