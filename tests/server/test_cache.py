import asyncio
import time

import pytest
import redis.asyncio
from fixtures_server import run_cache
from fixtures_waiting import PATIENCE_S

from crosscope_server.cache import Cache

pytestmark = pytest.mark.asyncio


class Counts(list[str]):
    def __call__(self, outcome: str) -> None:
        self.append(outcome)


async def test_what_was_put_is_there_for_its_time(cache_socket):
    counts = Counts()
    cache = Cache(f"unix://{cache_socket}", counts)
    assert await cache.get("k") is None
    cache.put("k", lambda: b"\x00\xff", 100)
    await cache.written()
    assert await cache.get("k") == b"\x00\xff"
    assert counts == ["miss", "hit"]
    async with redis.asyncio.from_url(f"unix://{cache_socket}") as client:
        assert 0 < await client.ttl("k") <= 100
    await cache.close()


async def test_a_key_of_another_type_is_a_miss(cache_socket):
    async with redis.asyncio.from_url(f"unix://{cache_socket}") as client:
        await client.rpush("k", "x")
    cache = Cache(f"unix://{cache_socket}", Counts())
    assert await cache.get("k") is None
    await cache.close()


@pytest.mark.parametrize("url", ["unix:///nowhere/cache.sock", "redis://127.0.0.1:1"])
async def test_a_cache_that_is_away_is_asked_once_and_then_left_alone(url):
    counts = Counts()
    cache = Cache(url, counts)
    for _ in range(3):
        assert await cache.get("k") is None
    cache.put("k", lambda: b"v", 100)
    await cache.written()
    assert counts == ["failed", "skipped", "skipped"]
    assert not cache.is_up
    await cache.close()


async def test_a_cache_that_does_not_answer_is_given_up(deaf_socket):
    counts = Counts()
    cache = Cache(f"unix://{deaf_socket}", counts)
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.gather(*(cache.get(f"k{i}") for i in range(100))) == [None] * 100
    assert counts == ["failed"] * 100
    assert await cache.get("k") is None
    assert counts[100:] == ["skipped"]
    await cache.close()


async def test_every_look_up_of_many_at_once_is_a_hit_over_three_connections(cache_socket):
    counts = Counts()
    cache = Cache(f"unix://{cache_socket}", counts)
    values = {f"k{i}": bytes([i]) * 20_000 for i in range(50)}
    for key, value in values.items():
        cache.put(key, lambda value=value: value, 100)
    await cache.written()
    keys = list(values) * 10
    assert await asyncio.gather(*(cache.get(key) for key in keys)) == [values[key] for key in keys]
    assert counts == ["hit"] * 500
    async with redis.asyncio.from_url(f"unix://{cache_socket}") as client:
        assert len(await client.client_list()) <= 4  # this one among them
    await cache.close()


async def test_a_busy_event_loop_is_not_taken_for_a_slow_cache(cache_socket, monkeypatch):
    monkeypatch.setattr("crosscope_server.cache._PATIENCE_S", 0.5)
    counts = Counts()
    cache = Cache(f"unix://{cache_socket}", counts)
    cache.put("k", lambda: b"v" * 100_000, 100)
    await cache.written()
    is_over = False

    async def block() -> None:
        while not is_over:
            time.sleep(0.6)
            await asyncio.sleep(0)

    blocking = asyncio.create_task(block())
    assert await cache.get("k") == b"v" * 100_000
    is_over = True
    await blocking
    assert counts == ["hit"]
    await cache.close()


async def test_who_leaves_takes_nobodys_answer_along(cache_socket):
    cache = Cache(f"unix://{cache_socket}", Counts())
    cache.put("k", lambda: b"v", 100)
    await cache.written()
    gone, kept = asyncio.create_task(cache.get("k")), asyncio.create_task(cache.get("k"))
    await asyncio.sleep(0)
    gone.cancel()
    assert await kept == b"v"
    await cache.close()


async def test_a_cache_that_comes_back_is_used_again(tmp_path):
    path = tmp_path / "cache.sock"
    cache = Cache(f"unix://{path}", Counts())
    assert await cache.get("k") is None
    async with run_cache(path), asyncio.timeout(PATIENCE_S):
        while not cache.is_up:
            await asyncio.sleep(0.02)
        cache.put("k", lambda: b"v", 100)
        await cache.written()
        assert await cache.get("k") == b"v"
        await cache.close()
