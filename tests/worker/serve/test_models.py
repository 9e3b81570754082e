"""Which crosscoders and pairs stay loaded: bytes, last use, and calls that use them."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_serve import LAYER, VERSION, random_crosscoder, write_version

from crosscope_worker.effects.compare import compare
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.pair import Pair, decoder_layers, expected_bytes, load_pair
from crosscope_worker.models.partial import absent_names
from crosscope_worker.serve import loading
from crosscope_worker.serve.errors import ModelTooLarge, Overloaded, UnknownName
from crosscope_worker.serve.loading import LoadedCrosscoder, storage_bytes
from crosscope_worker.serve.models import Models
from tests.worker.elsewhere import HERE, THERE
from tests.worker.tiny_models import tiny_model

pytestmark = pytest.mark.asyncio
ANGLES_BYTES = 2 * 2 * 4 * 4
"""Both models' angles of positions, each with a copy, in float32: each tree of modules has its own."""
IDS = np.array([2, 7, 8, 9, 300, 41, 20, 6])
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

    async def got(name: str) -> LoadedCrosscoder:
        async with models.using(name, VERSION, whole=True) as loaded:
            return loaded

    first, same = await asyncio.gather(got("demo"), got("demo"))
    assert first is same
    async with models.using("second", VERSION, whole=True) as second, models.using_pair("tiny") as pair:
        assert second.pair is pair is first.pair
        assert models.used_bytes == pair_bytes + 2 * CROSSCODER_BYTES
    await got("demo")
    third = await got("third")
    assert third.pair is pair
    async with models.using("third", VERSION) as same_third:
        assert same_third is third, "a whole pair gives codes too"
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
        loaded = await stack.enter_async_context(models.using("demo", VERSION, whole=True))
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
        ModelTooLarge,
        match=r"crosscoder 'demo' with its pair up to layer 2 takes 0\.\d MB, but models may take 0\.0 MB",
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


@pytest.mark.parametrize(("full", "also"), [(HERE, 0), (THERE, CROSSCODER_BYTES)])
async def test_each_device_has_memory_of_its_own(
    full: str, also: int, home: Path, device: ThreadPoolExecutor, tiny_pair: Pair
) -> None:
    """The second has the dictionary besides its model."""
    needed = expected_bytes(tiny_pair.manifest, None, f"{HERE},{THERE}")
    models = Models(home, f"{HERE},{THERE}", needed[torch.device(full)] + also - 1, device)
    with pytest.raises(ModelTooLarge, match=rf"takes 0\.\d MB on {full}, but models may take 0\.\d MB here"):
        async with models.using("demo", VERSION, whole=True):
            pass
    models.close()


async def test_sizes_are_known_before_a_pair_is_loaded(tiny_pair: Pair) -> None:
    parameters = storage_bytes(each for model in tiny_pair.models for each in model.parameters())
    cpu = torch.device("cpu")
    assert expected_bytes(tiny_pair.manifest) == {cpu: parameters}
    kept = (name for name, _ in tiny_pair.models[0].named_parameters() if "layers.3." not in name)
    lower = sum(model.get_parameter(name).nbytes for name in kept for model in tiny_pair.models)
    assert expected_bytes(tiny_pair.manifest, LAYER) == {cpu: lower}


def top_bytes(pair: Pair) -> int:
    """The highest of four layers, of both models."""
    return sum(each.nbytes for model in pair.models for each in decoder_layers(model)[LAYER + 1 :].parameters())


def lower_bytes(pair: Pair) -> int:
    """All but that."""
    whole = sum(each.nbytes for model in pair.models for each in (*model.parameters(), *model.buffers()))
    return whole - top_bytes(pair)


def codes(loaded: LoadedCrosscoder) -> tuple[list[int], list[float]]:
    code = loaded.encoder([IDS])[0]
    return code.latents.tolist(), code.activations.tolist()


async def test_codes_need_the_lower_layers_and_the_rest_comes_when_it_is_asked_for(
    full_home: Path, device: ThreadPoolExecutor, tiny_pair: Pair, pair_bytes: int
) -> None:
    models = Models(full_home, "cpu", None, device)
    async with models.using("demo", VERSION) as lower, models.using("second", VERSION) as second:
        assert not lower.is_whole
        assert second.pair is lower.pair
        assert absent_names(lower.pair.pair.models[1]) == ["model.layers.3"]
        assert models.used_bytes == lower_bytes(tiny_pair) + 2 * CROSSCODER_BYTES
        before = codes(lower)
        async with models.using("demo", VERSION, whole=True) as whole:
            assert whole.is_whole
            assert whole.reading is lower.reading
            assert models.used_bytes == pair_bytes + 2 * CROSSCODER_BYTES + ANGLES_BYTES, "no weight is there twice"
            whole_pair = Subject(tiny_pair, whole.reading)
            expected = compare(whole_pair, [IDS], 3)[0]
            np.testing.assert_array_equal(compare(whole.subject, [IDS], 3)[0].kl_chat_base, expected.kl_chat_base)
            assert codes(whole) == codes(lower) == codes(second) == before
    async with models.using_pair("tiny") as pair, models.using("third", VERSION) as third:
        assert third.pair is pair is whole.pair
    assert models.used_bytes == pair_bytes + 3 * CROSSCODER_BYTES + ANGLES_BYTES
    models.close()


async def test_memory_for_the_lower_layers_alone_gives_codes_and_refuses_the_rest(
    home: Path, device: ThreadPoolExecutor, tiny_pair: Pair
) -> None:
    limit = lower_bytes(tiny_pair) + CROSSCODER_BYTES + 2000
    models = Models(home, "cpu", limit, device)
    async with models.using("demo", VERSION) as lower:
        before = codes(lower)
    said = (
        r"crosscoder 'demo' with its whole pair takes 0\.4 MB, but models may take 0\.\d MB here; set CROSSCOPE_WORKER_"
    )
    said += r"MAX_MODEL_BYTES if the device has more, or CROSSCOPE_WORKER_DEVICE to more devices; codes alone may need"
    with pytest.raises(ModelTooLarge, match=said):
        async with models.using("demo", VERSION, whole=True):
            pass
    async with models.using("demo", VERSION) as still:
        assert still is lower
        assert codes(still) == before
        assert models.used_bytes <= limit
    models.close()


async def test_a_whole_pair_that_had_to_go_comes_back_as_far_as_it_is_asked_for(
    full_home: Path, device: ThreadPoolExecutor, tiny_pair: Pair, pair_bytes: int
) -> None:
    shutil.copytree(full_home / "pairs" / "tiny", full_home / "pairs" / "other")
    manifest = full_home / "pairs" / "other" / "pair.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"other"'))
    models = Models(full_home, "cpu", pair_bytes + CROSSCODER_BYTES + 2000, device)
    async with models.using("demo", VERSION, whole=True):
        pass
    async with models.using_pair("other"):
        assert models.used_bytes == pair_bytes
        with pytest.raises(Overloaded, match="crosscoder 'demo' with its pair up to layer 2 takes"):
            async with models.using("demo", VERSION):
                pass
    async with models.using("demo", VERSION) as lower:
        assert models.used_bytes == lower_bytes(tiny_pair) + CROSSCODER_BYTES
        assert not lower.is_whole
    models.close()


async def test_codes_go_on_while_the_rest_is_loaded(
    home: Path, device: ThreadPoolExecutor, tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, may_go_on = Models(home, "cpu", None, device), threading.Event()

    def held(*args: Any, **kwargs: Any) -> Pair:
        may_go_on.wait()
        return load_pair(*args, **kwargs)

    async def whole() -> tuple[bool, int]:
        async with models.using("demo", VERSION, whole=True) as loaded:
            return loaded.is_whole, models.used_bytes

    async with models.using("demo", VERSION) as lower:
        monkeypatch.setattr(loading, "load_pair", held)
        asking = asyncio.create_task(whole())
        await asyncio.sleep(0)
        async with models.using("demo", VERSION) as same:
            code = await asyncio.get_running_loop().run_in_executor(device, codes, same)
        assert same is lower
        assert not asking.done()
        may_go_on.set()
        assert await asking == (True, lower_bytes(tiny_pair) + top_bytes(tiny_pair) + CROSSCODER_BYTES)
        assert codes(lower) == code
        async with models.using("demo", VERSION) as after:
            assert after.is_whole
            assert codes(after) == code
    models.close()


async def test_a_class_of_which_a_part_is_of_no_use_is_loaded_whole(
    home: Path, device: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """RWKV looks at all its layers before it runs the first."""
    sizes = {"vocab_size": 400, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 4}
    rwkv = tiny_model("RWKV", **sizes)
    for name in ("base", "chat"):
        rwkv.save_pretrained(home / "pairs" / "tiny" / name)
    write_version(home, "rwkv", random_crosscoder())
    models = Models(home, "cpu", None, device)
    with caplog.at_level("INFO"):
        async with models.using("rwkv", VERSION) as loaded:
            assert loaded.is_whole
            assert models.used_bytes == 2 * storage_bytes(rwkv.parameters()) + CROSSCODER_BYTES
            codes(loaded)
    assert "a part of the pair is of no use, so it is loaded whole" in caplog.text
    models.close()
