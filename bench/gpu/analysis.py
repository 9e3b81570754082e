"""The analysis of a dictionary with 73 728 latents, k 100: the pass over held-out tokens, and the tables after it.

    python -m bench.gpu.analysis [--dry] [--out FILE]

The pass is measured with the models and, because they dominate it, with given activations too. The tables are those of
the given activations, the logit lens of both models included. Fidelity and causal effects, which run both models again,
are not measured.
"""

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu.material import gemma_pair, gemma_tokenizer, lengths, texts
from bench.gpu.rows import Run, main
from crosscope_proto.roles import TokenRole
from crosscope_proto.specs import AnalysisSpec, TokenPolicy
from crosscope_proto.stages import Stage
from crosscope_worker.analysis import coactivation, intake, latents, moments, quality, store, uselessness
from crosscope_worker.analysis import run as module
from crosscope_worker.analysis.run import HeldOut, analyse
from crosscope_worker.data.harvest import Harvest, harvest
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.dictionary.sparse import launches_kernels
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair
from crosscope_worker.precision import float32_on, float32_products
from crosscope_worker.tokenizer.tokens import TextTokenizer

NAMES = ("texts",)
TIMED: tuple[tuple[Any, str], ...] = (
    (intake, "encode_block"),
    (moments.Moments, "add"),
    (quality.Quality, "add"),
    (uselessness.ChatOnlySums, "add"),
    (coactivation.CoActivation, "add"),
    (store.Store, "add"),
    (store.Store, "segments"),
    (moments.Moments, "shard_sums"),
    (coactivation.CoActivation, "strongest"),
    *((module, name) for name in ("peak_windows", "choose", "silent_texts", "example_table", "behaviour_table")),
    *((module, name) for name in ("top_tokens", "find_lenses", "sequence_table", "peak_contexts", "latent_table")),
    *((latents, name) for name in ("jackknife", "directions", "score", "neighbours", "geometry", "_lens", "_pieces")),
)
"""Parts that are timed, by the place where they are looked up."""


def rows(run: Run) -> None:
    """All rows of the section."""
    with torch.no_grad(), float32_products(float32_on(run.device, None)):
        pair = run.part("analysis.models", lambda: gemma_pair(run, gemma_tokenizer(4000), _long_rows(run)), 20, "free")
        if pair is not None:
            tokenizer = TextTokenizer(pair.tokenizer)
            _rows_of_given(run, pair, tokenizer)
            run.part("analysis.pass", lambda: _with_models(run, pair, tokenizer), limit_s=50)


def _long_rows(run: Run) -> bool:
    return run.device.type == "cuda" and launches_kernels()


def _num_tokens(run: Run) -> int:
    return 4000 if run.dry else 65_536


def _rows_of_given(run: Run, pair: Pair, tokenizer: TextTokenizer) -> None:
    """The rows of given activations, the parts of an analysis first."""

    def make() -> tuple[Crosscoder, HeldOut]:
        given = _activations(run, len(pair.tokenizer))
        return _crosscoder(run, given.x[: run.sizes.batch]), HeldOut([given], NAMES, tokenizer, pair)

    made = run.part("analysis.given", make, limit_s=15)
    if made is not None:
        run.part("analysis.parts", lambda: _in_parts(run, *made), limit_s=30)
        run.part("analysis.finish", lambda: _given(run, *made), limit_s=30)


def _in_parts(run: Run, crosscoder: Crosscoder, held_out: HeldOut) -> None:
    """The row of the parts of one analysis, after a short one that warms up; so far as it came if it is broken off."""
    analyse(crosscoder, held_out, AnalysisSpec(max_tokens=_num_tokens(run) // 16), _Clock(run))
    clock, began = _Clock(run), time.perf_counter()
    with _timed_parts(run) as parts:
        try:
            analyse(crosscoder, held_out, AnalysisSpec(max_tokens=_num_tokens(run)), clock)
        finally:
            whole = time.perf_counter() - began
            seconds = {
                name: [took, parts.calls[name]]
                for name, took in sorted(parts.seconds.items(), key=lambda each: -each[1])
            }
            run.row("analysis.parts", whole, "s", of_pass=clock.passed and clock.took, parts=seconds)


def _given(run: Run, crosscoder: Crosscoder, held_out: HeldOut) -> None:
    """Rows of the pass and the tables with given activations, after those of the parts."""
    clock = _Clock(run)
    held = run.start_peak()
    found = analyse(crosscoder, held_out, AnalysisSpec(max_tokens=_num_tokens(run)), clock)
    run.sync()
    finish = time.perf_counter() - clock.passed
    figures = {"tokens": found.num_tokens, "l0": found.metrics["l0"], "classes": found.class_counts}
    run.row("analysis.pass_given", found.num_tokens / clock.took, "tok/s", seconds=clock.took, **figures)
    run.row("analysis.finish", finish, "s", peak_gib=run.peak_gib(held))


def _with_models(run: Run, pair: Pair, tokenizer: TextTokenizer) -> None:
    """The row of the pass with both models; the texts before warm up."""
    activations = PairActivations(pair, run.sizes.layer)
    total = _num_tokens(run)
    of = texts(lengths(total + total // 4), len(pair.tokenizer))
    policy = TokenPolicy()
    first = next(iter(harvest(of, activations, policy)))
    crosscoder = _crosscoder(run, first.x[: run.sizes.batch])
    del first
    took, harvested = run.wall(lambda: sum(len(each.x) for each in harvest(of, activations, policy)))
    clock = _Clock(run, ends=True)
    spec = AnalysisSpec(max_tokens=total)
    try:
        analyse(crosscoder, HeldOut(harvest(of, activations, policy), NAMES, tokenizer), spec, clock)
    except _Passed as passed:
        run.row("analysis.pass", passed.tokens / clock.took, "tok/s", seconds=clock.took, harvest=harvested / took)


class _Passed(Exception):
    """Ends an analysis after its pass."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens


class _Clock:
    """A Progress that notes when the pass is over."""

    def __init__(self, run: Run, *, ends: bool = False) -> None:
        self._run, self._ends = run, ends
        run.sync()
        self._began = time.perf_counter()
        self.passed = 0.0
        self._tokens = 0

    @property
    def took(self) -> float:
        """Seconds of the pass."""
        return self.passed - self._began

    def __call__(self, stage: str, fraction: float, message: str = "", **_: object) -> None:
        """See Progress."""
        del fraction
        if stage == Stage.ANALYSE and message == "choosing examples":
            self._run.sync()
            self.passed = time.perf_counter()
            if self._ends:
                raise _Passed(self._tokens)
        elif message.endswith("tokens measured"):
            self._tokens = int(message.split()[0])


def _activations(run: Run, vocab_size: int) -> Harvest:
    """Texts, and normally distributed activations of their tokens on the device."""
    of = texts(lengths(_num_tokens(run)), vocab_size)
    sizes = np.array([len(text.ids) for text in of])
    generator = torch.Generator(run.device).manual_seed(0)
    x = torch.randn(int(sizes.sum()), 2 * run.sizes.d_model, device=run.device, generator=generator)
    return Harvest(
        texts=of,
        x=x,
        text=torch.from_numpy(np.repeat(np.arange(len(of)), sizes)),
        position=torch.from_numpy(np.concatenate([np.arange(size) for size in sizes])),
        role=torch.full((len(x),), int(TokenRole.TEXT), dtype=torch.uint8),
        dataset=torch.zeros(len(x), dtype=torch.uint8),
    )


def _crosscoder(run: Run, x: Tensor) -> Crosscoder:
    """Random unit rows, and a threshold that k latents a token exceed on `x`."""
    width = run.sizes.d_model
    generator = torch.Generator(run.device).manual_seed(1)
    decoder = torch.randn(run.sizes.num_latents, 2 * width, device=run.device, generator=generator)
    for half in decoder.split(width, dim=1):
        half.div_(half.norm(dim=1, keepdim=True))
    made = Crosscoder(
        W_enc=decoder.clone().T,
        b_enc=decoder.new_zeros(len(decoder)),
        W_dec=decoder,
        b_dec=decoder.new_zeros(2 * width),
        d_model=(width, width),
        variant="batch_topk",
        keep=AboveThreshold(0.0),
    )
    scaled = made.scaled(x)
    made.keep = AboveThreshold(float(scaled.reshape(-1).topk(len(x) * run.sizes.k).values[-1]))
    return made


class _Parts:
    """Seconds and calls of parts; a part's time is without that of the parts in it, in its thread."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._within = threading.local()

    def timed(self, run: Run, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def call(*arguments: Any, **options: Any) -> Any:
            run.sync()
            began = time.perf_counter()
            stack: list[float] = vars(self._within).setdefault("stack", [0.0])
            stack.append(0.0)
            try:
                return plain(*arguments, **options)
            finally:
                run.sync()
                took = time.perf_counter() - began
                self.seconds[name] += took - stack.pop()
                self.calls[name] += 1
                stack[-1] += took

        return call


@contextmanager
def _timed_parts(run: Run, which: Iterable[tuple[Any, str]] = TIMED) -> Generator[_Parts]:
    """Times the parts of every analysis within."""
    parts = _Parts()
    plain = [(owner, name, getattr(owner, name)) for owner, name in which]
    try:
        for owner, name, function in plain:
            label = f"{owner.__name__}.{name}" if isinstance(owner, type) else name
            setattr(owner, name, parts.timed(run, label, function))
        yield parts
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)


if __name__ == "__main__":
    sys.exit(main("analysis", rows))
