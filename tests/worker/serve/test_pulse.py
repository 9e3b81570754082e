"""A device's thread that is stuck is noticed, told, and no longer asked; the process beats for it and for its loop."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures_waiting import happening

from crosscope_proto.beats import LONGEST_GAP_S, Beats, Listener, Silence
from crosscope_worker.serve import pulse
from tests.worker.serve.online import run_online


async def test_a_stuck_device_is_told_and_its_return_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY_S", 0.02)
    monkeypatch.setattr(pulse, "MORE_S", 2.0)
    told, loading, now = [], [False], [0.0]
    listener = Listener(clock=lambda: now[0])

    async def tell(moves: bool) -> None:
        told.append(moves)

    def promised_s() -> float:
        listener.silence()
        return listener._promises.get("device's thread", (0.0, 0.0))[1]  # pyright: ignore[reportPrivateUsage]

    def silence_after(seconds: int) -> Silence | None:
        """By the listener's clock, which stands still else."""
        for _ in range(seconds):
            now[0] += LONGEST_GAP_S
            silence = listener.silence()
        return silence

    with ThreadPoolExecutor(1) as device:
        go_on = threading.Event()
        watch = pulse.Pulse(device, 1.0, lambda: loading[0], tell, Beats(listener.passed_on[0]))
        beating = asyncio.create_task(watch.run())
        await happening(lambda: promised_s() == 3)
        loading[0] = True  # models are loaded: that may take long
        held = device.submit(go_on.wait)
        await happening(lambda: promised_s() == pulse.LOAD_S + 2)
        assert silence_after(20) is None
        assert told == []
        go_on.set()
        loading[0] = False
        await happening(held.done)

        go_on.clear()
        device.submit(go_on.wait)
        await happening(lambda: told == [False])
        assert promised_s() == 3
        silence = silence_after(4)
        assert silence is not None
        assert silence.part == "device's thread"  # the loop goes on
        go_on.set()
        await happening(lambda: told == [False, True])
        beating.cancel()
    listener.close()


async def test_a_worker_whose_device_is_stuck_is_not_asked(home: Path) -> None:
    async with run_online(home, stuck_after_s=1) as online:
        go_on = threading.Event()
        online.process._device_thread.submit(go_on.wait)  # pyright: ignore[reportPrivateUsage]
        await online.front.prompts_serve(serving=False)
        go_on.set()
        await online.front.prompts_serve()
