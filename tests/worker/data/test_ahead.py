"""Items that are made ahead are those that were to be made, and their thread ends with them."""

import threading
from collections.abc import Generator

import pytest
from fixtures_waiting import PATIENCE_S

from crosscope_worker.data.ahead import ahead


def alive() -> bool:
    return any(thread.name == "items" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_in_order_then_the_error_and_the_generator_is_closed_where_it_ran(depth: int):
    threads: list[str] = []

    def items() -> Generator[int]:
        try:
            yield from range(7)
            raise ValueError("item 7 is broken")
        finally:
            threads.append(threading.current_thread().name)

    found: list[int] = []
    with pytest.raises(ValueError, match="item 7 is broken"):
        found.extend(ahead(items(), depth, "items"))
    cut = ahead(items(), depth, "items")
    assert next(cut) == 0
    cut.close()
    assert found == list(range(7))
    assert threads == ["items" if depth else "MainThread"] * 2
    assert list(ahead((i for i in range(4)), depth, "items")) == [0, 1, 2, 3]
    assert not alive()


def test_no_more_than_depth_items_wait_while_one_more_is_made():
    made = threading.Semaphore(0)

    def items() -> Generator[int]:
        for number in range(20):
            made.release()
            yield number

    found = ahead(items(), 2, "items")
    assert not made.acquire(timeout=0.05), "nothing is made before the first is asked for"
    assert next(found) == 0
    for _ in range(1 + 2 + 1):
        assert made.acquire(timeout=PATIENCE_S)
    assert not made.acquire(timeout=0.1), "the one given, two that wait, and one more"
    found.close()
    assert not alive()
