"""Which crosscoders and pairs are loaded: those used last that fit the memory. Knows no requests or batches."""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from crosscope_proto.specs import Float32
from crosscope_store.shelf import ALONE, Shelf
from crosscope_worker.models.placement import Placement
from crosscope_worker.models.places import PairError
from crosscope_worker.serve.errors import ModelTooLarge, Overloaded, UnknownName
from crosscope_worker.serve.loading import (
    Loaded,
    LoadedCrosscoder,
    LoadedPair,
    Loader,
    Plan,
    Storages,
    by_device,
    pair_json,
    warm_up,
)

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

    def named(self, upto: int | None) -> str:
        """What is loaded, for messages; `upto`: see Plan."""
        if self.version_id is None:
            return f"pair {self.name!r}"
        return f"crosscoder {self.name!r} with its " + ("whole pair" if upto is None else f"pair up to layer {upto}")


@dataclass(eq=False)
class _Entry:
    loaded: Loaded
    num_calls: int = 0
    """Calls that use it now."""


class Models:
    """Loads crosscoders and pairs on request and keeps those that were used last. For one event loop."""

    def __init__(
        self,
        home: Path,
        device: str,
        max_bytes: int | None,
        device_executor: Executor,
        float32: Float32 | None = None,
        shelf: Shelf = ALONE,
    ) -> None:
        """`device` in Placement's words. Weights take at most `max_bytes` of each device; None: most of its memory.
        Models warm up on `device_executor`, on which they will run. `float32`, `shelf`: see Loader. Raises
        PlacementError.
        """
        self._home = home
        self.placement = Placement.of(device)
        self._max_bytes = {each: max_bytes or round(_SHARE * device_bytes(each)) for each in self.placement.devices}
        self._device_executor = device_executor
        self._reader = Loader(home, self.placement, float32, shelf)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._one_load = asyncio.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        """Least recently used first."""
        self._loading: dict[tuple[_Key, bool], asyncio.Task[_Entry]] = {}
        """By what is loaded, and whether with a whole pair."""

    @property
    def used_bytes(self) -> int:
        """Memory of all that is loaded; what several share counts once."""
        return self._bytes_of([entry.loaded for entry in self._entries.values()]).total()

    @property
    def is_loading(self) -> bool:
        """Whether something is being loaded, or waits to be."""
        return bool(self._loading)

    @asynccontextmanager
    async def using(self, name: str, version_id: str, whole: bool = False) -> AsyncGenerator[LoadedCrosscoder]:
        """A version of a crosscoder, loaded if necessary, which stays for as long as the context lasts.

        Its pair reaches up to the layer that it reads, or is there as a `whole`: then the layers above are loaded
        beside what calls use meanwhile. Loads run one at a time, off the event loop. Raises UnknownName,
        CrosscoderError, PairError; ModelTooLarge if it is larger than all memory for models, and Overloaded if calls
        use what would have to go.
        """
        async with self._using(_Key(name, version_id), whole) as loaded:
            assert isinstance(loaded, LoadedCrosscoder)
            yield loaded

    @asynccontextmanager
    async def using_pair(self, name: str) -> AsyncGenerator[LoadedPair]:
        """The pair of this name below the home, as it is now; else as `using`."""
        key = _Key(name, None, pair_json(self._home, name).stat().st_mtime_ns)
        async with self._using(key, whole=True) as loaded:
            assert isinstance(loaded, LoadedPair)
            yield loaded

    def close(self) -> None:
        """Starts no more loads; a running load continues."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _using(self, key: _Key, whole: bool) -> AsyncGenerator[Loaded]:
        while (entry := self._serving(key, whole)) is None:  # Something else may have taken its place meanwhile.
            await self._load_once(key, whole)
        self._entries.move_to_end(key)
        entry.num_calls += 1
        try:
            yield entry.loaded
        finally:
            entry.num_calls -= 1

    def _serving(self, key: _Key, whole: bool) -> _Entry | None:
        """What is loaded under a key, if it is as much as is asked for."""
        entry = self._entries.get(key)
        return None if entry is None or (whole and not entry.loaded.is_whole) else entry

    async def _load_once(self, key: _Key, whole: bool) -> None:
        task = self._loading.get((key, whole))
        if task is None:
            task = self._loading[key, whole] = asyncio.create_task(self._load(key, whole))
            task.add_done_callback(self._end_of_load(key, whole))
        # A caller that gives up does not stop the load that others wait for.
        await asyncio.shield(task)

    async def _load(self, key: _Key, whole: bool) -> _Entry:
        async with self._one_load:
            if (entry := self._serving(key, whole)) is not None:
                return entry
            loaded: Loaded | None = await self._read(key, whole)
            try:
                await self._warm_up(loaded)
            except PairError as error:
                if loaded.is_whole:
                    raise
                why = {"model": key.name, "version": key.version_id, "error": str(error)}
                log.info("a part of the pair is of no use, so it is loaded whole", extra=why)
                self._reader.keep_whole(_pair_of(loaded))
                loaded = None
            if loaded is None:
                loaded = await self._read(key, whole)
                await self._warm_up(loaded)
            entry = self._entries.setdefault(key, _Entry(loaded))
            entry.loaded = loaded  # A call that goes on with less of the pair shares all its memory with this one.
            return entry

    async def _read(self, key: _Key, whole: bool) -> Loaded:
        """What is asked for, read within the memory for models."""
        loop = asyncio.get_running_loop()
        plan = await loop.run_in_executor(self._thread, self._reader.plan, key.name, key.version_id, whole)
        self._make_room(key, plan)
        given = self._entries[key].loaded if key in self._entries else None
        load = self._reader.load
        loaded = await loop.run_in_executor(self._thread, load, key.name, key.version_id, whole, given)
        own_bytes = loaded.size_bytes if isinstance(loaded, LoadedCrosscoder) else 0
        pair = _pair_of(loaded)
        self._make_room(key, Plan(own_bytes, pair.bytes_by_device, pair, plan.upto))
        return loaded

    async def _warm_up(self, loaded: Loaded) -> None:
        await asyncio.get_running_loop().run_in_executor(self._device_executor, warm_up, loaded)

    def _make_room(self, key: _Key, plan: Plan) -> None:
        """Drops the longest unused until the plan fits; `plan.pair` and the key's own stay.

        Raises ModelTooLarge or Overloaded.
        """
        needed = self._own(plan.own_bytes) + plan.pair_bytes
        if (full := self._too_small_for(needed)) is not None:
            is_more_than_codes = key.version_id is not None and plan.upto is None
            way_out = "; codes alone may need less, for they need no layers above the crosscoder's"
            way_out = way_out if is_more_than_codes else ""
            raise ModelTooLarge(
                f"{key.named(plan.upto)} takes {_size(needed[full])}{self._on(full)}, but models may take "
                f"{_size(self._max_bytes[full])} here; set CROSSCOPE_WORKER_MAX_MODEL_BYTES if the device has more, or "
                f"CROSSCOPE_WORKER_DEVICE to more devices{way_out}"
            )
        dropped: list[_Key] = []
        kept = OrderedDict((each, entry) for each, entry in self._entries.items() if each != key)
        for candidate, entry in list(kept.items()):
            if self._too_small_for(self._with(kept, plan)) is None:
                break
            if not entry.num_calls:
                dropped.append(candidate)
                del kept[candidate]
        if (full := self._too_small_for(taken := self._with(kept, plan))) is not None:
            raise Overloaded(
                f"{key.named(plan.upto)} takes {_size(needed[full])}{self._on(full)}, but calls use "
                f"{_size(taken[full] - needed[full])} of the {_size(self._max_bytes[full])} that models may take here; "
                "try again later",
                _RETRY_S,
            )
        for each in dropped:
            del self._entries[each]
            log.info("dropped a model", extra={"model": each.name, "version": each.version_id})

    def _too_small_for(self, needed: Counter[torch.device]) -> torch.device | None:
        """The device that has less memory for models than is needed of it; None: there is room on each."""
        return next((each for each in self.placement.devices if needed[each] > self._max_bytes[each]), None)

    def _on(self, device: torch.device) -> str:
        return f" on {device}" if len(self.placement.devices) > 1 else ""

    def _own(self, num_bytes: int) -> Counter[torch.device]:
        """Memory of crosscoders, which lie at home."""
        return Counter({self.placement.home: num_bytes})

    def _with(self, entries: "OrderedDict[_Key, _Entry]", plan: Plan) -> Counter[torch.device]:
        """Memory of some entries and of a plan together, on each device."""
        loaded: list[Loaded] = [entry.loaded for entry in entries.values()]
        there: Counter[torch.device] = Counter() if plan.pair is None else plan.pair.bytes_by_device
        parts = loaded if plan.pair is None else [*loaded, plan.pair]
        return self._bytes_of(parts) + self._own(plan.own_bytes) + (plan.pair_bytes - there)

    def _bytes_of(self, loaded: list[Loaded]) -> Counter[torch.device]:
        crosscoders = sum(each.size_bytes for each in loaded if isinstance(each, LoadedCrosscoder))
        pairs: Storages = {}
        for each in loaded:
            pairs |= _pair_of(each).storages
        return self._own(crosscoders) + by_device(pairs)

    def _end_of_load(self, key: _Key, whole: bool) -> Callable[[asyncio.Task[_Entry]], None]:
        def forget(task: asyncio.Task[_Entry]) -> None:
            del self._loading[key, whole]
            if not task.cancelled() and (error := task.exception()) and not isinstance(error, UnknownName):
                why = {"model": key.name, "version": key.version_id, "whole": whole, "error": str(error)}
                log.warning("cannot load a model", extra=why)

        return forget


def _pair_of(loaded: Loaded) -> LoadedPair:
    return loaded.pair if isinstance(loaded, LoadedCrosscoder) else loaded


def device_bytes(device: torch.device) -> int:
    """All memory of a device; on the CPU what the machine, or the container, has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    total = psutil.virtual_memory().total
    try:
        return min(total, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # No container, or one without a limit ("max").
        return total


def allocated_bytes(device: torch.device) -> int:
    """Memory of a device that this process uses; on the CPU all that is resident."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
