"""A device's thread that is stuck is noticed, told, and no longer asked; the process beats for it and for its loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crosscope_proto.beats import Beats, Listener
from crosscope_worker.serve import pulse
from tests.worker.serve.online import run_online


async def until(happens: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not happens():
            await asyncio.sleep(0.01)


async def test_a_stuck_device_is_told_and_its_return_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY_S", 0.02)
    monkeypatch.setattr(pulse, "MORE_S", 0.2)
    told, loading, listener = [], [False], Listener()

    async def tell(moves: bool) -> None:
        told.append(moves)

    with ThreadPoolExecutor(1) as device:
        go_on = threading.Event()
        watch = pulse.Pulse(device, 0.2, lambda: loading[0], tell, Beats(listener.passed_on[0]))
        beating = asyncio.create_task(watch.run())
        await asyncio.sleep(0.1)
        assert listener.silence() is None
        loading[0] = True  # models are loaded: that may take long
        device.submit(go_on.wait)
        await asyncio.sleep(0.6)
        assert told == []
        assert listener.silence() is None
        go_on.set()
        await asyncio.sleep(0.1)

        loading[0] = False
        go_on.clear()
        device.submit(go_on.wait)
        await until(lambda: told == [False])
        await until(listener.silence)
        silence = listener.silence()
        assert silence is not None
        assert silence.part == "device's thread"  # the loop goes on
        go_on.set()
        await until(lambda: told == [False, True])
        beating.cancel()
    listener.close()


async def test_a_worker_whose_device_is_stuck_is_not_asked(home: Path) -> None:
    async with run_online(home, stuck_after_s=1) as online:
        go_on = threading.Event()
        online.process._device_thread.submit(go_on.wait)  # pyright: ignore[reportPrivateUsage]
        await online.front.prompts_serve(serving=False)
        go_on.set()
        await online.front.prompts_serve()
