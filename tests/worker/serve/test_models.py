"""Which crosscoders and pairs stay loaded: bytes, last use, and calls that use them."""

import asyncio
import gc
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from fixtures_serve import VERSION, random_crosscoder, write_version

from crosscope_worker.models.pair import Pair, expected_bytes
from crosscope_worker.serve.errors import ModelTooLarge, Overloaded, UnknownName
from crosscope_worker.serve.loading import storage_bytes
from crosscope_worker.serve.models import Models

pytestmark = pytest.mark.asyncio
CROSSCODER_BYTES = sum(
    each.nbytes for each in (getattr(random_crosscoder(), f"{n}") for n in ("W_enc", "b_enc", "W_dec", "b_dec"))
)


@pytest.fixture
def device() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.fixture
def pair_bytes(tiny_pair: Pair) -> int:
    """Both models by hand: embeddings tied to the head, so counted once."""
    return sum(each.nbytes for model in tiny_pair.models for each in (*model.parameters(), *model.buffers()))


@pytest.fixture
def full_home(home: Path) -> Path:
    for name in ("second", "third"):
        write_version(home, name, random_crosscoder())
    return home


async def test_crosscoders_share_their_pair_and_the_oldest_goes(
    full_home: Path, device: ThreadPoolExecutor, pair_bytes: int
) -> None:
    models = Models(full_home, "cpu", pair_bytes + 2 * CROSSCODER_BYTES + 2000, device)

    async def got(name: str) -> object:
        async with models.using(name, VERSION) as loaded:
            return loaded

    first, same = await asyncio.gather(got("demo"), got("demo"))
    assert first is same
    async with models.using("second", VERSION) as second, models.using_pair("tiny") as pair:
        assert second.pair is pair is first.pair
        assert models.used_bytes == pair_bytes + 2 * CROSSCODER_BYTES
    await got("demo")
    third = await got("third")
    assert third.pair is pair
    assert await got("demo") is first
    assert await got("second") is not second
    models.close()


async def test_what_a_call_uses_stays_and_a_pair_goes_with_its_last_use(
    full_home: Path, device: ThreadPoolExecutor, pair_bytes: int
) -> None:
    shutil.copytree(full_home / "pairs" / "tiny", full_home / "pairs" / "other")
    manifest = full_home / "pairs" / "other" / "pair.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"other"'))
    models = Models(full_home, "cpu", pair_bytes + 2 * CROSSCODER_BYTES, device)
    async with AsyncExitStack() as stack:
        loaded = await stack.enter_async_context(models.using("demo", VERSION))
        gone = weakref.ref(loaded.pair.pair.models[0])
        with pytest.raises(Overloaded, match=r"pair 'other' takes .* MB, but calls use .* MB of the .*; try again"):
            await stack.enter_async_context(models.using_pair("other"))
        del loaded
    async with models.using_pair("other"):
        assert models.used_bytes == pair_bytes
        gc.collect()
        assert gone() is None
    models.close()


async def test_what_can_never_fit_is_refused_with_both_numbers(
    home: Path, device: ThreadPoolExecutor, pair_bytes: int
) -> None:
    models = Models(home, "cpu", 1000, device)
    with pytest.raises(
        ModelTooLarge, match=r"crosscoder 'demo' with its pair takes 0\.\d MB, but models may take 0\.0 MB"
    ):
        async with models.using("demo", VERSION):
            pass
    assert models.used_bytes == 0
    models.close()


async def test_unknown_pairs_are_refused_with_those_that_exist(home: Path, device: ThreadPoolExecutor) -> None:
    models = Models(home, "cpu", None, device)
    for name in ("none", "../pairs/tiny", "x" * 200):
        with pytest.raises(UnknownName, match="there: tiny"):
            async with models.using_pair(name):
                pass
    models.close()


async def test_a_pair_that_was_written_again_is_read_again(home: Path, device: ThreadPoolExecutor) -> None:
    models = Models(home, "cpu", None, device)
    async with models.using_pair("tiny") as first:
        pass
    (home / "pairs" / "tiny" / "pair.json").touch()
    config = home / "pairs" / "tiny" / "chat" / "config.json"
    config.write_text(config.read_text() + "\n")
    async with models.using_pair("tiny") as second:
        assert second is not first
    models.close()


async def test_sizes_are_known_before_a_pair_is_loaded(tiny_pair: Pair) -> None:
    parameters = storage_bytes(each for model in tiny_pair.models for each in model.parameters())
    assert expected_bytes(tiny_pair.manifest) == parameters
