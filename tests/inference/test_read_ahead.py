from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from detr_kit.inference.read_ahead import read_ahead


@pytest.mark.parametrize("ahead", [0, 1, 7])
def test_results_come_in_order(ahead: int) -> None:
    got = [(item, result()) for item, result in read_ahead(range(40), lambda x: x * x, ahead=ahead)]
    assert got == [(item, item * item) for item in range(40)]


def test_work_goes_on_while_a_result_is_looked_at() -> None:
    begun = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            begun.set()
        return item

    stream = read_ahead(range(5), work, ahead=2)
    assert next(stream)[1]() == 0
    assert begun.wait(timeout=10)  # nobody asked for item 1 yet
    stream.close()


def test_no_more_is_fetched_than_said() -> None:
    fetched = 0

    def items() -> Iterator[int]:
        nonlocal fetched
        while True:
            fetched += 1
            yield fetched

    stream = read_ahead(items(), lambda x: x, ahead=3)
    for _, result in itertools.islice(stream, 10):
        result()
    stream.close()
    assert fetched <= 10 + 3 + 2  # one more waits for a place, one more was fetched before the end


def test_an_error_of_the_work_is_that_of_its_item_alone() -> None:
    stream = read_ahead([1, 0, 2], lambda x: 2 // x, ahead=2)
    assert next(stream)[1]() == 2
    with pytest.raises(ZeroDivisionError):
        next(stream)[1]()
    assert next(stream)[1]() == 1


def test_threads_end_with_the_iterator() -> None:
    stream = read_ahead(itertools.count(), lambda x: x, ahead=2)
    next(stream)
    stream.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("detr_kit-")]
