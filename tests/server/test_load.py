"""What the event loop bears, and what that does to the door."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crosscope_server.callers import Caller, set_calling
from crosscope_server.door import Door
from crosscope_server.errors import Overloaded
from crosscope_server.load import Load
from crosscope_server.refusals import Refused


def test_the_share_falls_at_once_and_rises_slowly() -> None:
    """By a fifth for each busy interval, and back by a fiftieth of the whole for each of the others."""
    load = Load()
    for busy, share in ((0.96, 0.8), (1.0, 0.64), (0.95, 0.66), (0.1, 0.68)):
        load.note(busy)
        assert (load.busy, load.share) == (busy, pytest.approx(share))
    for _ in range(16):
        load.note(0.0)
    assert load.share == 1.0


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="only Linux says how long a thread waited")
@pytest.mark.asyncio
async def test_a_loop_that_never_rests_is_busy_also_beside_others() -> None:
    load = Load()
    watching = asyncio.create_task(load.watch())
    await asyncio.sleep(0.3)
    assert load.share == 1.0
    ends_at = time.monotonic() + 0.5
    while time.monotonic() < ends_at:
        await asyncio.sleep(0)
    assert load.busy > 0.95
    assert load.share < 0.7
    watching.cancel()


def door_and_refused(most: int, share: float, clock: Callable[[], float] = time.monotonic) -> tuple[Door, Refused]:
    load, refused = Load(), Refused(clock)
    load.share = share
    return Door("crosscope.v1.Prompts", most, lambda: 1.5, refused, load, least=16), refused


@pytest.mark.parametrize(("most", "share", "bears"), [(100, 1.0, 100), (100, 0.25, 25), (100, 0.01, 16), (4, 0.1, 4)])
def test_a_server_that_does_not_keep_up_lets_fewer_in(most: int, share: float, bears: int) -> None:
    assert door_and_refused(most, share)[0].most == bears


def test_a_refusal_says_that_the_server_has_too_much_to_do() -> None:
    door, refused = door_and_refused(100, 0.2)
    set_calling(Caller("lena"))
    with contextlib.ExitStack() as inside:
        for _ in range(16):  # 4/5 of 20
            inside.enter_context(door.entered())
        said = "there may be 20 in all while this server has too much to do, else 100, and one caller's at most 4 times"
        with pytest.raises(Overloaded, match=said):
            inside.enter_context(door.entered())
    assert refused == {"behind": 1}


def test_many_refusals_ask_callers_to_stay_away_for_longer() -> None:
    """Else 256 callers who come back at once keep the server from answering anybody."""
    door, _ = door_and_refused(1, 1.0, clock=lambda: 100.0)
    set_calling(Caller("lena"))
    hints: list[float] = []
    with door.entered():
        for _ in range(120):
            with pytest.raises(Overloaded) as refusal, door.entered():
                pass
            hints.append(refusal.value.retry_after_s or 0)
    assert hints[0] == 1.5
    assert hints[-1] == 2.4  # 120 refusals in this second, and 50 may come back in one
    assert hints == sorted(hints)
