"""The same numbers on the device as on the CPU and by autograd in float64, at small sizes. Measures no time.

The references are the tests' own: tests/worker/training/test_objective.py writes every loss a second time.
"""

import copy
import itertools
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Gemma2ForCausalLM

from bench.gpu.material import gemma_config, gemma_tokenizer, texts
from bench.gpu.rows import DRY, Run, main
from crosscope_proto.artefacts import PairManifest
from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import AnalysisSpec, TokenPolicy
from crosscope_worker.analysis.run import Analysis, HeldOut, analyse
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.prefetch import PrefetchedSource
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.dictionary.sparse import batch_topk
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair
from crosscope_worker.serve.encoding import Encoder
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.training import TrainingResult, active_code, train
from crosscope_worker.training.active_code import Weights
from crosscope_worker.training.objective import compute_step
from crosscope_worker.training.variants import variant_of
from crosscope_worker.work import silent
from tests.fixtures_training import PlantedSource, make_recipe
from tests.worker.analysis import conftest as analysis_world
from tests.worker.training import test_objective as losses

CPU = torch.device("cpu")
LOSS_ERRORS = {torch.float64: 1e-8, torch.float32: 2e-4, torch.bfloat16: 0.25}
"""Largest relative errors of a loss or a gradient by the data type of the products, which the CPU's tests ask for."""
SHAPES = (((3, 7), 21, 13), ((64, 64), 300, 40))
"""Widths, latents and tokens."""


@dataclass
class Outcome:
    """What a check found."""

    failed: int = 0
    detail: dict[str, Any] = field(default_factory=dict)
    """Sizes, the largest errors, and what failed first."""

    def expect(self, is_right: bool, what: str) -> None:
        """Counts what is not right, and keeps the first five."""
        if not is_right:
            self.failed += 1
            self.detail.setdefault("wrong", [])
            if self.failed <= 5:
                self.detail["wrong"].append(what)


def rows(run: Run) -> None:
    """A row for every check, and their sum; a check that broke counts as one that failed."""
    failed = 0
    for name, (work, limit_s) in CHECKS.items():
        outcome = run.part(f"checks.{name}", lambda work=work: work(run), limit_s, use="free")
        failed += 1 if outcome is None else outcome.failed
        if outcome is not None:
            run.row(f"checks.{name}", outcome.failed, "failed", **outcome.detail)
    run.row("checks.failed", failed, "failed", checks=len(CHECKS))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what was expected."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def objective(run: Run) -> Outcome:
    """Every loss and gradient of every variant, sparse and dense, in three data types, against autograd."""
    outcome, worst = Outcome(), dict.fromkeys(LOSS_ERRORS, 0.0)
    shapes = SHAPES[:1] if run.dry else SHAPES
    count = 0
    for (d_model, latents, batch), options in itertools.product(shapes, losses.SPECS):
        case = _Case.of(d_model, latents, batch, options)
        for limit, (dtype, most) in itertools.product((-1.0, 2.0), LOSS_ERRORS.items()):
            name = f"{losses.name_of(options)} {'dense' if limit < 0 else 'entries'} {latents} {dtype}"
            count += 1
            try:
                with run.turn("beside"), _dense_above(limit):
                    error = case.error(run.device, dtype)
            except Exception as failure:
                outcome.expect(False, f"{name}: {type(failure).__name__}: {str(failure)[:120]}")
                continue
            worst[dtype] = max(worst[dtype], error)
            outcome.expect(error <= most, f"{name}: {error:.2g}")
    errors = {str(dtype).removeprefix("torch."): error for dtype, error in worst.items()}
    outcome.detail |= {"comparisons": count, "largest_errors": errors}
    return outcome


@contextmanager
def _dense_above(limit: float) -> Generator[None]:
    """Within it codes are dense above this share of active entries, on every device."""
    before = active_code.DENSE_ABOVE
    active_code.DENSE_ABOVE = dict.fromkeys(before, limit)
    try:
        yield
    finally:
        active_code.DENSE_ABOVE = before


@dataclass(frozen=True)
class _Case:
    """A batch and weights in float64 on the CPU, and what autograd makes of them."""

    variant: Any
    weights: Weights
    extra: Mapping[str, Tensor]
    x: Tensor
    dead: Tensor | None
    loss: float
    gradients: Weights

    @classmethod
    def of(cls, d_model: tuple[int, int], latents: int, batch: int, options: dict[str, Any]) -> "_Case":
        """As tests/worker/training/test_objective.py makes it."""
        spec = dictionary(**options, num_latents=latents)
        variant = variant_of(spec, d_model)
        if variant.needs_equal_widths():
            variant = variant_of(spec, (max(d_model), max(d_model)))
        parts = variant.widths
        weights = losses.make_weights(parts, latents)
        variant.absent(weights.encoder, weights.decoder)
        if shared := losses.own(spec, "num_shared"):
            weights.decoder[:shared, parts[0] :] = weights.decoder[:shared, : parts[0]]
        x = torch.randn(batch, sum(parts), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        dead = torch.arange(latents) % 3 == 0 if spec.revives else None
        extra = {name: each + 0.2 * torch.arange(latents).sin() for name, each in variant.extra(weights).items()}
        with torch.enable_grad():
            loss, gradients, _ = losses.autograd(weights, extra, x, spec, parts, dead, 1 / 32)
        return cls(variant, weights, extra, x, dead, float(loss), gradients)

    def error(self, device: torch.device, dtype: torch.dtype) -> float:
        """The largest relative error of the loss and the gradients, computed there with products in `dtype`."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        step = compute_step(
            Weights(*(each.to(device, kind) for each in self.weights)),
            self.x.to(device, kind),
            self.variant,
            extra={name: each.to(device, kind) for name, each in self.extra.items()},
            dead=None if self.dead is None else self.dead.to(device),
            aux_weight=1 / 32,
            floors=[0.4] * self.variant.num_thresholds,
            dtype=dtype,
        )
        errors = [relative_error(a, b) for a, b in zip(step.gradients, self.gradients, strict=True)]
        return max(abs(float(step.loss) / self.loss - 1), *errors)


def selection(run: Run) -> Outcome:
    """The entries that batch_topk keeps, with and without ties and a guess."""
    outcome = Outcome()
    shapes = ((7, 50, 30, 0.0), (64, 3000, 900, 0.0), (64, 3000, 900, 0.25), (33, 257, 8000, 0.5))
    for seed, (batch, latents, count, grain) in enumerate(shapes):
        draw = torch.Generator().manual_seed(seed)
        pre = torch.randn(batch, latents, generator=draw)
        bias, norms = 0.1 * torch.randn(latents, generator=draw), 0.5 + torch.rand(latents, generator=draw)
        if grain:
            pre, bias, norms = (pre / grain).round() * grain, torch.zeros(latents), torch.ones(latents)
        for floor in (0.0, 0.5):
            expected = batch_topk(pre, bias, norms, count, floor)
            with run.turn("beside"):
                found = batch_topk(pre.to(run.device), bias.to(run.device), norms.to(run.device), count, floor)
            same = torch.equal(found[0].cpu(), expected[0]) and abs(float(found[1]) - float(expected[1])) < 1e-6
            outcome.expect(same, f"{batch} tokens, {latents} latents, {count} kept, floor {floor}")
    return outcome


class _Moved(PlantedSource):
    """Planted activations, given on a device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(num_blocks=60)
        self.device = device

    def blocks(self) -> Generator[Tensor]:
        for block in super().blocks():
            yield block.to(self.device)


class _Stop(Exception):
    """Ends a training as a lost machine does."""


def _stop(*_: object, step: int = 0, **__: object) -> None:
    if step == 33:
        raise _Stop


def trainings(run: Run) -> Outcome:
    """A small training of four variants: the CPU's weights, and after a break bit for bit its own."""
    outcome, errors = Outcome(), dict[str, float]()
    for options in (
        {"variant": "batch_topk", "num_latents": 24, "k": 2},
        {"variant": "l1", "num_latents": 24, "mu": 0.05},
        {"variant": "delta", "num_latents": 24, "k": 2, "num_delta": 6, "k_delta": 1, "delta_weight": 0.7},
        {"variant": "diff_sae", "num_latents": 24, "k": 2},
    ):
        name = str(options["variant"])
        with run.turn("beside"), tempfile.TemporaryDirectory() as folder:
            expected = _trained(options, CPU, Path(folder, "cpu"))
            whole = _trained(options, run.device, Path(folder, "whole"))
            try:
                _trained(options, run.device, Path(folder, "broken"), _stop)
                outcome.expect(False, f"{name}: the training was not broken off")
            except _Stop:
                pass
            resumed = _trained(options, run.device, Path(folder, "broken"))
        for weight in ("W_enc", "b_enc", "W_dec", "b_dec"):
            mine, theirs, again = (getattr(each.crosscoder, weight) for each in (whole, expected, resumed))
            errors[f"{name}.{weight}"] = error = relative_error(mine, theirs)
            outcome.expect(error < 1e-4, f"{name}: {weight} is off by {error:.2g}")
            outcome.expect(torch.equal(mine, again), f"{name}: {weight} differs after a resume")
        outcome.expect(whole.steps == expected.steps == resumed.steps, f"{name}: other numbers of steps")
    outcome.detail["largest_error"] = max(errors.values())
    return outcome


def _trained(
    options: dict[str, Any], device: torch.device, folder: Path, progress: Callable[..., None] = silent
) -> TrainingResult:
    folder.mkdir(exist_ok=True)
    source = PrefetchedSource(_Moved(device), device)
    with torch.no_grad():
        return train(make_recipe(options, checkpoint_every=10), [source], (8, 8), folder, progress, device)


class _Slow:
    """Numbered blocks that are ready only when a chain of products on the same stream is."""

    def __init__(self, run: Run, number: int) -> None:
        self.device, self.number, self.at = run.device, number, 0
        self.side = 64 if run.dry else 1024

    def blocks(self) -> Generator[Tensor]:
        """[2048, 512] each, full of its number."""
        factor = torch.randn(self.side, self.side, device=self.device) / self.side**0.5
        while self.at < self.number:
            self.at += 1
            chain = factor
            for _ in range(20):
                chain = chain @ factor
            yield torch.full((2048, 512), float(self.at), device=self.device) + 0 * chain[0, 0].nan_to_num(0)

    def fraction(self) -> float:
        """See ActivationSource."""
        return self.at / self.number

    def state(self) -> dict[str, Any]:
        """See ActivationSource."""
        return {"at": self.at}

    def restore(self, state: dict[str, Any]) -> None:
        """See ActivationSource."""
        self.at = state["at"]


def prefetching(run: Run) -> Outcome:
    """Blocks of a prefetching stream, read on another: none before it is written, none after its memory went on."""
    outcome = Outcome(detail={"blocks": 40})
    factor = torch.randn(64 if run.dry else 2048, 64 if run.dry else 2048, device=run.device)
    with run.turn("beside"):
        for number, block in enumerate(PrefetchedSource(_Slow(run, 40), run.device).blocks(), start=1):
            product = factor @ factor
            mean = (block + 0 * product[0, 0].nan_to_num(0)).mean()
            del block, product
            other = torch.full((2048, 512), -1.0, device=run.device)  # lands where memory was given back too early
            outcome.expect(abs(float(mean) - number) < 1e-3, f"block {number} is {float(mean):g}")
            del other
    return outcome


def prompts(run: Run) -> Outcome:
    """Activations of texts, and codes of prompts, of a small pair in float32."""
    outcome = Outcome()
    tokenizer = gemma_tokenizer(600)
    torch.manual_seed(0)
    both = [Gemma2ForCausalLM(gemma_config(Run(dry=True))).eval().requires_grad_(False) for _ in range(2)]
    manifest = PairManifest(name="small", base="base", chat="chat", tokenizer="chat")
    pairs: list[Pair] = []
    for device in (CPU, run.device):
        base, chat = (copy.deepcopy(model).to(device) for model in both)  # pyright: ignore[reportArgumentType]
        pairs.append(Pair(manifest, (base, chat), tokenizer, device))
    given = texts(np.random.default_rng(0).integers(5, 60, 40).tolist(), both[0].config.vocab_size)
    policy = TokenPolicy(max_norm_ratio=3.0)
    with run.turn("beside"):
        read = [PairActivations(pair, DRY.layer) for pair in pairs]
        x = [torch.cat([each.x.cpu() for each in harvest(given, one, policy, 256)]) for one in read]
    outcome.expect(x[0].shape == x[1].shape, f"{len(x[1])} tokens are kept, not {len(x[0])}")
    if x[0].shape == x[1].shape:
        outcome.detail["activations"] = error = relative_error(x[1], x[0])
        outcome.expect(error < 1e-4, f"activations are off by {error:.2g}")
    crosscoder = _reading_crosscoder(x[0])
    codes = []
    for pair in pairs:
        maxima = torch.ones(crosscoder.num_latents, device=pair.device)
        subject = Subject(pair, Reading(DRY.layer, crosscoder.to(pair.device), maxima, TokenPolicy()))
        with run.turn("beside"):
            codes.append(Encoder(subject, 1)([text.ids for text in given[:9]]))
    for number, (expected, found) in enumerate(zip(*codes, strict=True)):
        same = np.array_equal(expected.row_starts, found.row_starts)
        outcome.expect(same, f"prompt {number}: other numbers of active latents")
        if same:
            # Sorted, because latents of almost equal strength may change places.
            close = np.allclose(np.sort(expected.activations), np.sort(found.activations), rtol=1e-3, atol=1e-5)
            outcome.expect(close and set(expected.latents) == set(found.latents), f"prompt {number}: another code")
    return outcome


def _reading_crosscoder(x: Tensor) -> Crosscoder:
    """A crosscoder of 512 latents, of which some ten are active on each token of x: [token, both]."""
    draw = torch.Generator().manual_seed(1)
    decoder = torch.randn(512, x.shape[1], generator=draw)
    half = x.shape[1] // 2
    made = Crosscoder(
        W_enc=decoder.clone().T,
        b_enc=torch.zeros(512),
        W_dec=decoder,
        b_dec=torch.zeros(2 * half),
        d_model=(half, half),
        variant="batch_topk",
        keep=AboveThreshold(0.0),
    )
    some = x[:500]
    made.keep = AboveThreshold(float(torch.topk(made.scaled(some).reshape(-1), len(some) * 10).values[-1]))
    return made


def analysis(run: Run) -> Outcome:
    """All columns of the latents' table, and the examples, of a small dictionary."""
    outcome = Outcome()
    tokenizer = TextTokenizer(gemma_tokenizer(600))
    with run.turn("beside"):
        expected, found = (_analysed(device, tokenizer) for device in (CPU, run.device))
    worst = 0.0
    for name in expected.latents.column_names:
        a, b = (each.latents.column(name).to_numpy(zero_copy_only=False) for each in (expected, found))
        if a.dtype.kind not in "fiu":
            continue
        a, b = a.astype(float), b.astype(float)
        same_gaps = np.array_equal(np.isnan(a), np.isnan(b))
        outcome.expect(same_gaps, f"{name}: other latents have no value")
        if same_gaps and not np.isnan(a).all():
            error = float(np.nanmax(np.abs(a - b)) / max(np.nanmax(np.abs(a)), 1e-30))
            worst = max(worst, error)
            outcome.expect(error < 1e-3, f"{name} is off by {error:.2g}")
    same = expected.examples.num_rows == found.examples.num_rows
    outcome.expect(same, "another number of examples")
    outcome.detail |= {"columns": len(expected.latents.column_names), "largest_error": worst}
    return outcome


def _analysed(device: torch.device, tokenizer: TextTokenizer) -> Analysis:
    draw = np.random.default_rng(0)
    given = [analysis_world.make_text(draw, index % 2, int(draw.integers(6, 15))) for index in range(61)]
    harvests = [analysis_world.make_harvest(given[first : first + 7], 40, draw) for first in range(0, 61, 7)]
    crosscoder = analysis_world.make_crosscoder(90, (20, 20), 0, 0.9, (0.5, 2.0)).to(device)
    moved = [replace(each, x=each.x.to(device)) for each in harvests]
    spec = AnalysisSpec(max_tokens=10_000, num_shards=4, top_examples=3, examples_per_quantile=2, uselessness_steps=50)
    return analyse(crosscoder, HeldOut(moved, ("documents", "chats"), tokenizer), spec, silent)


CHECKS: dict[str, tuple[Callable[[Run], Outcome], float]] = {
    "trainings": (trainings, 60),
    "prompts": (prompts, 40),
    "prefetching": (prefetching, 20),
    "selection": (selection, 20),
    "analysis": (analysis, 40),
    "objective": (objective, 100),
}
"""The checks by name, the quick ones first, each with its limit in seconds."""


if __name__ == "__main__":
    sys.exit(main("checks", rows))
