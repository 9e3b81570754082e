import asyncio
import weakref
from collections.abc import AsyncIterator

import pytest

from crosscope_server.errors import Overloaded
from crosscope_server.refusals import Refused
from crosscope_server.streams import in_order
from crosscope_server.unread import Unread

pytestmark = pytest.mark.asyncio


class Source:
    """Counts up, and remembers how far it was read."""

    def __init__(self, length: int) -> None:
        self.length, self.taken = length, 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for i in range(self.length):
            self.taken = i + 1
            yield i


async def test_results_come_in_order_whatever_finishes_first():
    finished: list[int] = []
    gates = [asyncio.Event() for _ in range(4)]
    gates[3].set()

    async def work(i: int) -> int:
        await gates[i].wait()
        finished.append(i)
        if i:
            gates[i - 1].set()
        return i * i

    assert [result async for result in in_order(Source(4), work, 4)] == [0, 1, 4, 9]
    assert finished == [3, 2, 1, 0]


async def test_no_more_than_the_limit_is_taken_before_a_result_was_read():
    source = Source(100)

    async def work(i: int) -> int:
        return i

    results = in_order(source, work, 3)
    for expected in range(5):
        assert await anext(results) == expected
        for _ in range(20):
            await asyncio.sleep(0)
        assert source.taken <= expected + 3
    await results.aclose()


async def test_leaving_early_cancels_what_is_under_way():
    started, cancelled = [], []

    async def work(i: int) -> int:
        started.append(i)
        try:
            await asyncio.sleep(0 if i == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(i)
            raise
        return i

    results = in_order(Source(100), work, 4)
    assert await anext(results) == 0
    while len(started) < 4:
        await asyncio.sleep(0)
    await results.aclose()
    assert sorted(cancelled) == [1, 2, 3]


async def test_a_source_that_fails_gives_its_results_first():
    async def source() -> AsyncIterator[int]:
        yield 1
        raise OSError("the wire broke")

    async def work(i: int) -> int:
        return i

    results = in_order(source(), work, 2)
    assert await anext(results) == 1
    with pytest.raises(OSError, match="the wire broke"):
        await anext(results)


async def test_an_empty_source_has_no_results():
    async def work(i: int) -> int:
        return i

    assert [result async for result in in_order(Source(0), work, 1)] == []


async def turns_of_the_loop() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def size(item: int) -> int:
    return item


async def test_a_stream_takes_no_more_on_while_room_is_scarce_and_its_reader_has_not_read():
    """Of 100 bytes, results of 20: with one on its way and two worked on or waiting, the next would pass the half."""
    refused, taken = Refused(), []
    unread = Unread(100, refused)

    async def source() -> AsyncIterator[int]:
        for i in range(100):
            await turns_of_the_loop()  # by then the one before is ready
            taken.append(i)
            yield i

    results = in_order(source(), size, 8, unread, lambda _: 20)
    assert await anext(results) == 0
    for _ in range(20):
        await turns_of_the_loop()
    assert taken == [0, 1, 2]
    assert unread.num_bytes == 60  # the one that is on its way among them
    assert [await anext(results) for _ in range(20)] == list(range(1, 21))
    await results.aclose()
    assert (unread.num_bytes, unread.streams, refused) == (0, set(), Refused())


async def test_streams_that_begin_at_once_reserve_room_before_anything_is_known():
    """Of 3 200 bytes a result is first taken for a 32nd."""
    unread, gate, begun = Unread(3200, Refused()), asyncio.Event(), []

    async def work(item: int) -> int:
        begun.append(item)
        await gate.wait()
        return item

    streams = [in_order(Source(2), work, 2, unread, lambda _: 100) for _ in range(60)]
    firsts = [asyncio.create_task(anext(each)) for each in streams]
    await turns_of_the_loop()
    assert len(begun) == 32
    gate.set()
    await asyncio.sleep(0.1)  # nobody reads on, and no more are begun
    assert len(begun) == 32
    assert (unread.num_bytes, unread.num_reserved) == (3200, 0)
    for task in firsts:
        task.cancel()
    await asyncio.gather(*firsts, return_exceptions=True)
    for each in streams:
        await each.aclose()
    assert (unread.num_bytes, unread.num_reserved, unread.streams) == (0, 0, set())


async def test_a_stream_that_waits_keeps_no_result():
    class Result:
        pass

    async def work(_: int) -> Result:
        return Result()

    async def source() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    results = in_order(source(), work, 2)
    first = weakref.ref(await anext(results))
    rest = asyncio.create_task(anext(results))
    await turns_of_the_loop()
    assert first() is None
    rest.cancel()
    await asyncio.gather(rest, return_exceptions=True)


async def test_the_stream_that_leaves_most_unread_is_cut_off_and_the_others_go_on():
    refused = Refused()
    unread = Unread(100, refused)
    gates = [asyncio.Event() for _ in range(2)]

    async def work(item: int) -> int:
        await gates[item > 0].wait()
        return item

    idle = in_order(Source(8), work, 8, unread, lambda _: 15)  # takes all eight before any is ready
    busy = in_order(Source(3), size, 1, unread, lambda _: 10)
    first = asyncio.create_task(anext(idle))
    await turns_of_the_loop()
    gates[0].set()
    assert await first == 0
    assert await anext(busy) == 0
    gates[1].set()
    await turns_of_the_loop()  # 10, and 15 of each of eight: with the seventh of them it is too much
    assert unread.num_bytes == 25  # what is on its way still counts
    with pytest.raises(Overloaded, match="105 bytes of this stream's replies waited to be read") as caught:
        await anext(idle)
    assert caught.value.retry_after_s
    assert refused == {"unread": 1}
    assert [result async for result in busy] == [1, 2]
    assert (unread.num_bytes, unread.streams) == (0, set())
