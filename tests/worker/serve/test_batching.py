"""The batcher alone, with a device that waits for the test."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio
from fixtures_waiting import PATIENCE_S

from crosscope_worker.serve.batching import Batcher
from crosscope_worker.serve.errors import Overloaded, TooLate


class Device:
    """Answers an item with its double, once the test opens it; fails on negative items, and above a memory limit."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.open = threading.Event()
        self.open.set()
        self.max_items = 100

    def __call__(self, key: str, items: Sequence[int]) -> list[int]:
        self.batches.append((key, list(items)))
        assert self.open.wait(PATIENCE_S)
        if len(items) > self.max_items:
            raise MemoryError
        if any(item < 0 for item in items):
            raise ArithmeticError(f"poisoned by {min(items)}")
        return [2 * item for item in items]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest_asyncio.fixture
async def batcher(device: Device) -> AsyncIterator[Batcher[str, int, int]]:
    executor = ThreadPoolExecutor(1)
    yield Batcher(device, executor, max_batch_tokens=20, max_queued_tokens=50)
    device.open.set()
    executor.shutdown()


async def started(device: Device, batcher: Batcher[str, int, int]) -> "asyncio.Task[object]":
    """Keeps the device busy with item 0, so that later items have to wait."""
    device.open.clear()
    busy = asyncio.create_task(batcher.submit("a", 0, 1))
    while not device.batches:
        await asyncio.sleep(0)
    return busy


async def submitted(batcher: Batcher[str, int, int], *entries: tuple[str, int, int]) -> list["asyncio.Task[object]"]:
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(batcher.submit(*entry)) for entry in entries]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.asyncio
async def test_entries_share_a_batch_while_the_device_is_busy(device: Device, batcher: Batcher[str, int, int]) -> None:
    busy = await started(device, batcher)
    tasks = await submitted(batcher, ("a", 1, 5), ("b", 2, 5), ("a", 3, 5), ("a", 4, 10), ("a", 5, 5))
    assert batcher.queued_tokens == 30
    device.open.set()
    answers = await asyncio.gather(busy, *tasks)
    # 3 entries of 5 tokens fit 20; beside them 10 tokens would pad all four to 40.
    assert device.batches == [("a", [0]), ("a", [1, 3, 5]), ("b", [2]), ("a", [4])]
    assert [answer.result for answer in answers] == [0, 2, 4, 6, 8, 10]  # pyright: ignore[reportAttributeAccessIssue]
    assert batcher.queued_tokens == 0


@pytest.mark.asyncio
async def test_an_entry_above_the_budget_runs_alone(device: Device, batcher: Batcher[str, int, int]) -> None:
    busy = await started(device, batcher)
    tasks = await submitted(batcher, ("a", 1, 30), ("a", 2, 1))
    device.open.set()
    await asyncio.gather(busy, *tasks)
    assert device.batches[1:] == [("a", [1]), ("a", [2])]


@pytest.mark.asyncio
async def test_cancelled_and_expired_entries_do_not_run(device: Device, batcher: Batcher[str, int, int]) -> None:
    busy = await started(device, batcher)
    kept, cancelled = await submitted(batcher, ("a", 1, 5), ("a", 2, 5))
    late = asyncio.create_task(batcher.submit("a", 3, 5, timeout_s=0.0))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    device.open.set()
    await asyncio.gather(busy, kept)
    with pytest.raises(TooLate):
        await late
    assert device.batches[1:] == [("a", [1])]
    assert batcher.queued_tokens == 0


@pytest.mark.asyncio
async def test_too_many_waiting_tokens_are_refused_with_a_hint(device: Device, batcher: Batcher[str, int, int]) -> None:
    busy = await started(device, batcher)
    tasks = await submitted(batcher, ("a", 1, 60))
    with pytest.raises(
        Overloaded, match="60 tokens wait for the device, and 7 more would exceed the limit of 50"
    ) as refused:
        await batcher.submit("a", 2, 7)
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 0.05
    device.open.set()
    await asyncio.gather(busy, *tasks)
    assert (await batcher.submit("a", 2, 7)).result == 4


@pytest.mark.asyncio
async def test_a_poisoned_entry_fails_alone(device: Device, batcher: Batcher[str, int, int]) -> None:
    busy = await started(device, batcher)
    tasks = await submitted(batcher, *(("a", item, 2) for item in (1, 2, -3, 4, 5)))
    device.open.set()
    answers = await asyncio.gather(busy, *tasks, return_exceptions=True)
    results = [getattr(answer, "result", None) for answer in answers]
    assert results == [0, 2, 4, None, 8, 10]
    assert isinstance(answers[3], ArithmeticError)


@pytest.mark.asyncio
async def test_a_batch_without_memory_is_split(device: Device, batcher: Batcher[str, int, int]) -> None:
    device.max_items = 2
    busy = await started(device, batcher)
    tasks = await submitted(batcher, *(("a", item, 2) for item in (1, 2, 3, 4, 5)))
    device.open.set()
    answers = await asyncio.gather(busy, *tasks)
    assert [answer.result for answer in answers] == [0, 2, 4, 6, 8, 10]  # pyright: ignore[reportAttributeAccessIssue]
    device.max_items = 0
    with pytest.raises(Overloaded, match="work on 3 tokens does not fit the device's memory; shorten the prompt"):
        await batcher.submit("a", 1, 3)
