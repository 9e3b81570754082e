"""How much a home may hold, where measuring it takes long."""

import asyncio
import threading
from pathlib import Path

import pytest

from crosscope_server import quota
from crosscope_server.errors import Conflict
from crosscope_server.quota import Quota


async def test_who_only_asks_does_not_wait_for_a_long_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, begun = threading.Event(), list[Path]()

    def measure(home: Path) -> int:
        begun.append(home)
        may_end.wait(60)
        return 7

    monkeypatch.setattr(quota, "bytes_of", measure)
    monkeypatch.setattr(quota, "_PATIENCE_S", 0.01)
    asked = Quota(tmp_path, 10)
    assert await asked.held() is None
    submits = asyncio.create_task(asked.check())
    assert await asked.held() is None
    assert not submits.done()
    may_end.set()
    await submits
    held = await asked.held()
    assert held is not None
    assert (held.held_bytes, held.left_bytes) == (7, 3)
    assert begun == [tmp_path], "measured once for all"


async def test_a_home_that_is_full_takes_no_job(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(Conflict, match=r"holds .* of the .* that it may .*crosscope gc --dry-run"):
        await Quota(tmp_path, 10).check()
    await Quota(tmp_path, 12).check()
    await Quota(tmp_path, None).check()
    assert await Quota(tmp_path, None).held() is None
