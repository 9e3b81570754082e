"""The sources of a training's activations: both models run over its texts, or shards of an earlier run.

Both sources give the same blocks bit for bit, in the same order, with the same state after each. So weights and
learning rates do not depend on which it was. Does not know what the activations are used for.
"""

import copy
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.specs import TokenPolicy
from crosscope_proto.stages import Stage
from crosscope_worker.data.activation_cache import ActivationCache, Shard, State, cache_key, of_part
from crosscope_worker.data.activation_source import ActivationSource
from crosscope_worker.data.ahead import ahead
from crosscope_worker.data.harvest import TOKENS_PER_FORWARD, harvest_windows, windows_of
from crosscope_worker.data.part import WHOLE
from crosscope_worker.data.prefetch import PrefetchedSource
from crosscope_worker.data.tally import Counts, shifted, together
from crosscope_worker.data.texts import Text, TextStream
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormFilter, joined
from crosscope_worker.phases import Following, Phase
from crosscope_worker.ticks import Tick, idle_tick

WINDOWS_AHEAD = 2
"""Most windows of texts that wait for the models on a GPU while one more is read and tokenised."""


class _Standing(NamedTuple):
    """Where the reading of the texts stands."""

    epoch: int
    num_texts: int
    """Texts read in this epoch."""
    stream: State


class HarvestSource:
    """Runs both models over a recipe's training texts in every epoch: the ActivationSource of a training.

    Texts may be read ahead, on a thread; its state is that of the window given last. No block crosses the end of an
    epoch, and blocks do not depend on where a resumed training took over.
    """

    def __init__(
        self,
        stream: TextStream,
        activations: PairActivations,
        recipe: CrosscoderRecipe,
        tokens_per_forward: int = TOKENS_PER_FORWARD,
        tick: Tick = idle_tick,
        windows_ahead: int = 0,
    ) -> None:
        """`windows_ahead`: most windows of texts that wait for the models; at 0 texts are read between forwards."""
        self._tick = tick
        self._num_epochs = recipe.training.epochs
        self._stream = stream
        self._windows_ahead = windows_ahead
        self._activations = activations
        self._policy = recipe.tokens
        self._tokens_per_forward = tokens_per_forward
        self._norms = NormFilter(recipe.tokens.max_norm_ratio, activations.d_model)
        self._at = self._standing(0, 0)

    @property
    def epoch(self) -> int:
        """Index of the epoch that is being read; after the last one, the number of epochs."""
        return self._at.epoch

    @property
    def ended(self) -> bool:
        """Whether every epoch has been read."""
        return self.epoch >= self._num_epochs

    def blocks(self) -> Generator[Tensor]:
        """See ActivationSource."""
        while not self.ended:
            yield from self.rest_of_epoch()

    def rest_of_epoch(self) -> Generator[Tensor]:
        """Yields `[token, both]` float32 of the texts that are left in this epoch.

        At its last block `epoch` may be the next one already. To be closed before `restore`, and not read on after it.
        """
        try:
            with closing(ahead(self._read(), self._windows_ahead, "texts")) as windows:
                harvests = harvest_windows(
                    self._taken(windows),
                    self._activations,
                    self._policy,
                    self._tokens_per_forward,
                    self._norms,
                    self._at.num_texts,
                    self._tick,
                    self._stream.part != WHOLE,
                )
                for found in harvests:
                    yield found.x
        finally:
            # What was read ahead and not given counts for nothing.
            self._stream.restore(self._at.stream)

    def _taken(self, windows: Iterator[tuple[list[Text], _Standing]]) -> Iterator[list[Text]]:
        for window, self._at in windows:
            if window:
                yield window

    def _read(self) -> Generator[tuple[list[Text], _Standing]]:
        """The windows that are left in this epoch, and where the reading stands after each; at the end an empty one."""
        epoch, num_texts = self._at.epoch, self._at.num_texts

        def counted() -> Iterator[Text]:
            nonlocal epoch, num_texts
            for text in self._stream:
                num_texts += 1
                yield text
            epoch, num_texts = epoch + 1, 0

        for window in windows_of(counted(), self._activations, self._tokens_per_forward):
            yield window, self._standing(epoch, num_texts)
        yield [], self._standing(epoch, num_texts)

    def _standing(self, epoch: int, num_texts: int) -> _Standing:
        return _Standing(epoch, num_texts, copy.deepcopy(self._stream.state()))

    def fraction(self) -> float:
        """See ActivationSource."""
        return min(1.0, (self._at.epoch + self._stream.fraction(self._at.stream)) / self._num_epochs)

    def state(self) -> State:
        """See ActivationSource. "num_texts" is the number of texts read in this epoch."""
        return {
            "epoch": self._at.epoch,
            "num_texts": self._at.num_texts,
            "stream": self._at.stream,
            "norms": self._norms.state(),
        }

    def restore(self, state: State) -> None:
        """See ActivationSource."""
        self._stream.restore(state["stream"])
        self._at = self._standing(state["epoch"], state["num_texts"])
        self._norms.restore(state["norms"])


class CachedSource:
    """The blocks of a HarvestSource, read from a cache if they are there, else made and written to it.

    A shard's state is relative: its epoch counts from the shard's own epoch, its counts of texts and tokens from the
    shard before.
    """

    def __init__(
        self,
        source: HarvestSource,
        cache: ActivationCache,
        tick: Tick = idle_tick,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`tick` hears of tokens that were read from the cache, `say` of what is written to it."""
        self._source = source
        self._cache = cache
        self._tick, self._say = tick, say
        self._next_shard = 0

    def blocks(self) -> Generator[Tensor]:
        """See ActivationSource. Raises CacheFull or another OSError if a shard cannot be written."""
        while not self._source.ended:
            yield from self._rest_of_epoch()

    def _rest_of_epoch(self) -> Iterator[Tensor]:
        source, cache, epoch = self._source, self._cache, self._source.epoch
        fresh: Generator[Tensor] | None = None
        while source.epoch == epoch:
            before = source.state()
            if (shard := cache.read(self._next_shard)) is not None:
                if fresh is not None:
                    fresh.close()
                fresh, x = None, shard.x
                source.restore(_sum(before, shard.state))
                self._tick(len(x))
            else:
                fresh = fresh or source.rest_of_epoch()
                x = next(fresh, None)
                if x is not None:
                    self._say(f"writing {x.nbytes / 1e6:.0f} MB of activations, shard {self._next_shard}")
                    cache.write(self._next_shard, Shard(x, _difference(source.state(), before)))
            self._next_shard += x is not None
            if source.epoch > epoch:
                cache.finish(self._next_shard)
                self._next_shard = 0
            if x is not None:
                yield x

    def fraction(self) -> float:
        """See ActivationSource."""
        return self._source.fraction()

    def state(self) -> State:
        """See ActivationSource."""
        return {"harvest": self._source.state(), "next_shard": self._next_shard}

    def restore(self, state: State) -> None:
        """See ActivationSource."""
        self._source.restore(state["harvest"])
        self._next_shard = state["next_shard"]


def _difference(state: State, before: State) -> State:
    """A HarvestSource's state with its counts over all epochs relative to the state `before`."""
    return _shifted(state, before, -1)


def _sum(before: State, difference: State) -> State:
    """The state that has this difference from `before`."""
    return _shifted(difference, before, 1)


def _shifted(state: State, by: State, sign: int) -> State:
    counts = shifted(state["stream"]["counts"], by["stream"]["counts"], sign)
    norms, others = state["norms"], by["norms"]
    left_out = [one + sign * other for one, other in zip(norms["left_out"], others["left_out"], strict=True)]
    return state | {
        "epoch": state["epoch"] + sign * by["epoch"],
        "stream": state["stream"] | {"counts": counts},
        "norms": norms | {"num_tokens": norms["num_tokens"] + sign * others["num_tokens"], "left_out": left_out},
    }


def norms_of(states: Sequence[State], policy: TokenPolicy, d_model: tuple[int, int]) -> NormFilter:
    """The norm filter of sources with these states, one a stream: counts added up, bounds as `norms.joined`."""
    norms = NormFilter(policy.max_norm_ratio, d_model)
    norms.restore(joined([_of_harvest(state)["norms"] for state in states]))
    return norms


def counts_of(states: Sequence[State]) -> list[Counts]:
    """What became of the texts of each data set, by the states of all sources of a training."""
    return together(*(_of_harvest(state)["stream"]["counts"] for state in states))


def have_ended(states: Sequence[State]) -> bool:
    """Whether all sources with these states stand at the end of an epoch."""
    return all(_of_harvest(state)["epoch"] > 0 == _of_harvest(state)["num_texts"] for state in states)


def _of_harvest(state: State) -> State:
    return state.get("harvest") or state


def open_sources(
    recipe: CrosscoderRecipe,
    streams: Sequence[TextStream],
    activations: PairActivations,
    home: Path,
    hashes: dict[str, str],
    tell: Callable[[str], None],
    following: Following,
) -> list[ActivationSource]:
    """The sources that a recipe asks for, one a stream of texts; on a GPU they work ahead.

    `hashes`: of the pair and of what its chat template is told; `tell` hears of damaged shards, `following` of what is
    read, written and hashed. Raises CacheError if activations cannot be cached, and OSError if a data file cannot be
    read.
    """
    device = activations.pair.device
    # Without a GPU, tokeniser, models and trainer would share the cores that each of them alone keeps busy.
    on_gpu = device.type == "cuda"
    windows_ahead = WINDOWS_AHEAD if on_gpu else 0
    key = _key(recipe, streams[0], activations, hashes, following) if recipe.training.cache and streams else None
    turn = threading.Lock() if len(streams) > 1 else None
    sources: list[ActivationSource] = []
    for stream in streams:
        source: ActivationSource
        source = made = HarvestSource(stream, activations, recipe, tick=following.tick, windows_ahead=windows_ahead)
        if key is not None:
            cache = ActivationCache(home, of_part(key, stream.part), sum(activations.d_model), device, tell)
            cache.remove_partial(time.time())
            source = CachedSource(made, cache, following.tick, following.say)
        sources.append(PrefetchedSource(source, device, turn) if on_gpu else source)
    return sources


def _key(
    recipe: CrosscoderRecipe,
    stream: TextStream,
    activations: PairActivations,
    hashes: dict[str, str],
    following: Following,
) -> State:
    size = sum(path.stat().st_size for paths in stream.files for path in paths)
    hashing = Phase(following, Stage.HASH_DATA, "hashing the data", size, "bytes")
    return cache_key(recipe, activations, stream.files, hashes, TOKENS_PER_FORWARD, hashing)
