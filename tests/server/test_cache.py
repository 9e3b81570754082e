import asyncio

import pytest
import redis.asyncio
from fixtures_server import run_cache

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


async def test_a_cache_that_does_not_answer_is_given_up_after_50_ms(deaf_socket):
    cache = Cache(f"unix://{deaf_socket}", Counts())
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await cache.get("k") is None
    assert loop.time() - started < 0.2
    await cache.close()


async def test_a_cache_that_comes_back_is_used_again(tmp_path):
    path = tmp_path / "cache.sock"
    cache = Cache(f"unix://{path}", Counts())
    assert await cache.get("k") is None
    async with run_cache(path), asyncio.timeout(10):
        while not cache.is_up:
            await asyncio.sleep(0.02)
        cache.put("k", lambda: b"v", 100)
        await cache.written()
        assert await cache.get("k") == b"v"
        await cache.close()
