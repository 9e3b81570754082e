"""Which crosscoders and pairs are loaded: those used last that fit the memory. Knows no requests or batches."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from crosscope_worker.serve.errors import ModelTooLarge, Overloaded
from crosscope_worker.serve.loading import Loaded, LoadedCrosscoder, LoadedPair, Loader, Plan, pair_json, warm_up

_SHARE = 0.75
"""Share of a device's memory that models may take if nothing is set."""
_RETRY_S = 1.0
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

log = logging.getLogger(__name__)


class _Key(NamedTuple):
    name: str
    version_id: str | None
    """None for a pair."""
    changed_ns: int = 0
    """When a pair's manifest was written."""

    def __str__(self) -> str:
        return f"pair {self.name!r}" if self.version_id is None else f"crosscoder {self.name!r} with its pair"


@dataclass(eq=False)
class _Entry:
    loaded: Loaded
    num_calls: int = 0
    """Calls that use it now."""


class Models:
    """Loads crosscoders and pairs on request and keeps those that were used last. For one event loop."""

    def __init__(self, home: Path, device: str, max_bytes: int | None, device_executor: Executor) -> None:
        """Weights take at most `max_bytes`; None: most of the device's memory. Models warm up on `device_executor`,
        on which they will run.
        """
        self._home = home
        self._max_bytes = max_bytes or round(_SHARE * device_bytes(device))
        self._device_executor = device_executor
        self._reader = Loader(home, device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._one_load = asyncio.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        """Least recently used first."""
        self._loading: dict[_Key, asyncio.Task[_Entry]] = {}

    @property
    def used_bytes(self) -> int:
        """Memory of all that is loaded; what several share counts once."""
        return self._bytes_of([entry.loaded for entry in self._entries.values()])

    @asynccontextmanager
    async def using(self, name: str, version_id: str) -> AsyncGenerator[LoadedCrosscoder]:
        """A version of a crosscoder, loaded if necessary, which stays for as long as the context lasts.

        Loads run one at a time, off the event loop. Raises UnknownName, CrosscoderError, PairError; ModelTooLarge if it
        is larger than all memory for models, and Overloaded if calls use what would have to go.
        """
        async with self._using(_Key(name, version_id)) as loaded:
            assert isinstance(loaded, LoadedCrosscoder)
            yield loaded

    @asynccontextmanager
    async def using_pair(self, name: str) -> AsyncGenerator[LoadedPair]:
        """The pair of this name below the home, as it is now; else as `using`."""
        async with self._using(_Key(name, None, pair_json(self._home, name).stat().st_mtime_ns)) as loaded:
            assert isinstance(loaded, LoadedPair)
            yield loaded

    def close(self) -> None:
        """Starts no more loads; a running load continues."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _using(self, key: _Key) -> AsyncGenerator[Loaded]:
        entry = self._entries.get(key)
        while entry is None:
            loaded = await self._load_once(key)
            entry = self._entries.get(key)  # Something else may have taken its place meanwhile.
            entry = entry if entry is loaded else None
        self._entries.move_to_end(key)
        entry.num_calls += 1
        try:
            yield entry.loaded
        finally:
            entry.num_calls -= 1

    async def _load_once(self, key: _Key) -> _Entry:
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key))
            task.add_done_callback(self._end_of_load(key))
        # A caller that gives up does not stop the load that others wait for.
        return await asyncio.shield(task)

    async def _load(self, key: _Key) -> _Entry:
        loop = asyncio.get_running_loop()
        async with self._one_load:
            plan = await loop.run_in_executor(self._thread, self._reader.plan, key.name, key.version_id)
            self._make_room(key, plan)
            loaded = await loop.run_in_executor(self._thread, self._reader.load, key.name, key.version_id)
            own_bytes = loaded.size_bytes if isinstance(loaded, LoadedCrosscoder) else 0
            pair = _pair_of(loaded)
            self._make_room(key, Plan(own_bytes, pair.size_bytes, pair))
            await loop.run_in_executor(self._device_executor, warm_up, loaded)
            entry = self._entries[key] = _Entry(loaded)
            return entry

    def _make_room(self, key: _Key, plan: Plan) -> None:
        """Drops the longest unused until the plan fits; `plan.pair` stays. Raises ModelTooLarge or Overloaded."""
        needed = plan.own_bytes + plan.pair_bytes
        if needed > self._max_bytes:
            raise ModelTooLarge(
                f"{key} takes {_size(needed)}, but models may take {_size(self._max_bytes)} here; set "
                "CROSSCOPE_WORKER_MAX_MODEL_BYTES if the device has more"
            )
        dropped: list[_Key] = []
        kept = OrderedDict(self._entries)
        for candidate, entry in self._entries.items():
            if self._with(kept, plan) <= self._max_bytes:
                break
            if not entry.num_calls:
                dropped.append(candidate)
                del kept[candidate]
        if (taken := self._with(kept, plan)) > self._max_bytes:
            raise Overloaded(
                f"{key} takes {_size(needed)}, but calls use {_size(taken - needed)} of the {_size(self._max_bytes)} "
                "that models may take here; try again later",
                _RETRY_S,
            )
        for each in dropped:
            del self._entries[each]
            log.info("dropped a model", extra={"model": each.name, "version": each.version_id})

    def _with(self, entries: "OrderedDict[_Key, _Entry]", plan: Plan) -> int:
        """Memory of some entries and of a plan together."""
        loaded = [entry.loaded for entry in entries.values()]
        if plan.pair is not None:
            return plan.own_bytes + self._bytes_of([*loaded, plan.pair])
        return plan.own_bytes + plan.pair_bytes + self._bytes_of(loaded)

    @staticmethod
    def _bytes_of(loaded: list[Loaded]) -> int:
        crosscoders = sum(each.size_bytes for each in loaded if isinstance(each, LoadedCrosscoder))
        return crosscoders + sum(pair.size_bytes for pair in {_pair_of(each) for each in loaded})

    def _end_of_load(self, key: _Key) -> Callable[[asyncio.Task[_Entry]], None]:
        def forget(task: asyncio.Task[_Entry]) -> None:
            del self._loading[key]
            if not task.cancelled() and (error := task.exception()):
                why = {"model": key.name, "version": key.version_id, "error": str(error)}
                log.warning("cannot load a model", extra=why)

        return forget


def _pair_of(loaded: Loaded) -> LoadedPair:
    return loaded.pair if isinstance(loaded, LoadedCrosscoder) else loaded


def device_bytes(device: str) -> int:
    """All memory of a device; on the CPU what the machine, or the container, has."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    total = psutil.virtual_memory().total
    try:
        return min(total, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # No container, or one without a limit ("max").
        return total


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
