"""A training step at the original's size: against a dense autograd step and a floor, its kernels, waits and memory.

Also whether the pass that sums gradients and takes Adam's step moves weights as torch's Adam does, and where pairs and
dense formulas cross. Weights are random; codes look like those of a training in progress.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from bench.dense_step import DenseStep
from bench.gpu import profiles
from bench.gpu.rows import Run, Timing, main
from crosscope_proto.dictionaries import Known, Penalised, dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.precision import float32_products
from crosscope_worker.training import active_code
from crosscope_worker.training.adam import Adam
from crosscope_worker.training.entry_sums import EntrySums
from crosscope_worker.training.objective import Step, compute_step
from crosscope_worker.training.trainer import Trainer

LR = 1e-5
"""So low that codes do not change during the measurement."""
NUM_BATCHES = 4
"""Number of different batches, used in turn."""
MODES: tuple[tuple[str, Literal["bfloat16", "float32"]], ...] = (("float32", "float32"), ("bf16", "bfloat16"))
"""Names of rows, and data types of products; those of float32 are made in TF32. bfloat16 comes last, since its copies
of the weights are then kept up to date."""
OWN: dict[str, dict[str, Any]] = {"l1": {"mu": 0.041}}
SHARES = (0.0025, 0.005, 0.01, 0.02)
"""Shares of active entries at which both forms of a code are timed."""


def rows(run: Run) -> None:
    """Rows of three dictionaries, of the optimiser's pass, and of the density at which forms cross."""
    waits: dict[str, Counter[str]] = {}
    with torch.no_grad(), float32_products("tf32"):
        for variant in ("batch_topk", "l1", "diff_sae"):
            run.part(f"step.{variant}", lambda variant=variant: _variant(run, variant, waits), limit_s=25)
        run.part("step.adam", lambda: _adam(run), limit_s=15)
        run.part("step.loss_off", lambda: _loss_off(run), limit_s=15)
        run.part("step.crossing", lambda: _crossing(run), limit_s=15)
    if waits:
        most = max(waits, key=lambda variant: waits[variant].total())
        lines = {variant: dict(found) for variant, found in waits.items()}
        run.row("step.host_syncs", waits[most].total(), "waits", variant=most, lines=lines)
    elif run.dry:
        run.row("step.host_syncs", 0, "waits", "a CPU has nothing to wait for")


def spec_of(run: Run, variant: str) -> Known:
    """The dictionary at the run's sizes."""
    return dictionary(variant=variant, num_latents=run.sizes.num_latents, **OWN.get(variant, {"k": run.sizes.k}))


def prepared(run: Run, variant: str, max_norm: float | None = 1.0, lr: float = LR) -> tuple[Trainer, list[Tensor]]:
    """A trainer, and batches whose codes have about k latents a token, for penalised variants by their bias."""
    sizes, spec = run.sizes, spec_of(run, variant)
    training = TrainingSpec(batch_size=sizes.batch, lr=lr, max_grad_norm=max_norm)
    trainer = Trainer(spec, training, (sizes.d_model, sizes.d_model), run.device)
    inputs = [activations(run, trainer, seed) for seed in range(NUM_BATCHES)]
    if isinstance(spec, Penalised):
        thin_out(trainer, inputs[0], sizes.k / sizes.num_latents)
    return trainer, inputs


def activations(run: Run, trainer: Trainer, seed: int) -> Tensor:
    """As `bench.train_step.activations`, on the device: k rows a token, frequencies of three decades, and noise."""
    sizes, device = run.sizes, run.device
    fixed = torch.Generator(device).manual_seed(0)
    draw = torch.Generator(device).manual_seed(1 + seed)
    halves = trainer.weights.decoder.split(sizes.d_model, dim=1)  # one of diff_sae
    frequency = 10 ** (-3 * torch.rand(sizes.num_latents, generator=fixed, device=device))
    share = torch.rand(sizes.num_latents, generator=fixed, device=device)
    fires = torch.multinomial(frequency, sizes.batch * sizes.k, replacement=True, generator=draw)
    fires = fires.view(sizes.batch, sizes.k)
    strength = 0.5 + torch.rand(fires.shape, generator=draw, device=device)

    def summed(half: Tensor, weight: Tensor) -> Tensor:
        noise = 0.02 * torch.randn(sizes.batch, sizes.d_model, generator=draw, device=device)
        bags = torch.nn.functional.embedding_bag(fires, half.contiguous(), mode="sum", per_sample_weights=weight)
        return bags + noise

    base, chat = summed(halves[0], strength * share[fires]), summed(halves[-1], strength)
    return trainer.variant.streams.read(torch.cat([base, chat], 1), trainer.d_model)


def thin_out(trainer: Trainer, x: Tensor, share: float) -> None:
    """Sets the encoder's bias so that this share of the code of `x` is active, by a sample of its entries."""
    products = (x @ trainer.weights.encoder.T).reshape(-1)
    sample = products[:: max(1, len(products) // 8_000_000)].sort().values
    trainer.weights.b_enc.fill_(-float(sample[int((1 - share) * (len(sample) - 1))]))


def in_turn(inputs: list[Tensor], step: Callable[[Tensor], Any]) -> Callable[[], Any]:
    """A step on the next of the batches."""
    turn = 0

    def once() -> Any:
        nonlocal turn
        turn += 1
        return step(inputs[turn % len(inputs)])

    return once


def _variant(run: Run, variant: str, waits: dict[str, Counter[str]]) -> None:
    """The rows of one dictionary; only the weights stay of our trainer when the dense step begins."""
    weights, inputs, took = _ours(run, variant, waits)
    run.free()
    _dense(run, variant, DenseStep(spec_of(run, variant), *weights, lr=LR), inputs, took)


def _ours(
    run: Run, variant: str, waits: dict[str, Counter[str]]
) -> tuple[active_code.Weights, list[Tensor], dict[str, Timing]]:
    trainer, inputs = prepared(run, variant)
    step = in_turn(inputs, lambda x: trainer.step(x, LR))
    took: dict[str, Timing] = {}
    for mode, dtype in MODES:
        trainer.training = replace(trainer.training, dtype=dtype)
        for _ in inputs:  # compiles kernels, and gives guesses
            outcome: Step = step()
        held = run.start_peak()
        took[mode] = run.timed(step, rounds=12, warm_up=2)
        detail = {"peak_gib": run.peak_gib(), "held_gib": held / 2**30, "active": outcome.num_active / len(inputs[0])}
        detail |= {"tok_s": 1000 * len(inputs[0]) / took[mode].median, **took[mode].detail()}
        detail |= {"unmade": isinstance(outcome.gradients.encoder, EntrySums)}
        if (kernels := profiles.kernels(run, step)) is not None:
            largest = [[name[:40], round(ms, 3), count] for name, ms, count in kernels.largest]
            detail |= {"launches": kernels.launches, "kernels_ms": kernels.ms, "largest": largest, "busy": kernels.busy}
        if (found := profiles.waits(run, step)) is not None:
            waits[f"{variant}.{mode}"] = found
            detail |= {"host_syncs": found.total()}
        run.row(f"step.{variant}.{mode}", took[mode].median, "ms", **detail)
    return trainer.weights, inputs, took


def _dense(run: Run, variant: str, dense: DenseStep, inputs: list[Tensor], took: dict[str, Timing]) -> None:
    """The dense step beside ours: autocast to bfloat16, or TF32."""
    dense.exists = torch.empty(0)
    dense.optimiser = torch.optim.Adam(dense.parameters, lr=LR, fused=True)
    plain = dense.loss

    def cast(x: Tensor) -> Tensor:
        with torch.autocast(run.device.type, torch.bfloat16):
            return plain(x)

    for mode, loss in (("bf16", cast), ("float32", plain)):
        dense.loss = loss  # pyright: ignore[reportAttributeAccessIssue]
        with torch.enable_grad():
            theirs = run.timed(in_turn(inputs, dense.step), rounds=6, warm_up=2)
        times = theirs.median / took[mode].median
        run.row(f"step.{variant}.{mode}.over_dense", times, "times", dense_ms=theirs.median, **theirs.detail())


def _adam(run: Run) -> None:
    """The passes over one weight matrix, and how far one step of them lies from torch's Adam on made gradients."""
    trainer, inputs = prepared(run, "batch_topk")
    operands = trainer.weights.encoder.bfloat16(), trainer.weights.decoder.bfloat16()
    found = compute_step(
        trainer.weights, inputs[0], trainer.variant, dtype=torch.bfloat16, rounded=operands, unmade=True
    )
    sums = found.gradients.decoder
    assert isinstance(sums, EntrySums)
    del operands, found
    start = trainer.weights.decoder
    del trainer
    ours, theirs = start.clone(), start.clone()
    one = Adam({"decoder": ours}, 1e-3)
    one.rounded("decoder", torch.bfloat16)
    one.step({"decoder": sums}, 1e-4)
    # As torch's own clipping and Adam do it, on a gradient that is made.
    theirs.grad = sums.made(theirs)
    plain = torch.optim.Adam([theirs], lr=1e-4, fused=True)
    torch.nn.utils.clip_grad_norm_([theirs], 1e-3)
    plain.step()
    theirs.grad = None
    moved = float((theirs - start).norm())
    off = float((ours - theirs).norm()) / moved
    largest = float((ours - theirs).abs().max())
    run.row("step.adam.off", off, "of the step", largest=largest, lr=1e-4)
    del theirs, plain
    run.free()
    if run.device.type == "cuda":
        _passes(run, sums, ours)


def _passes(run: Run, sums: EntrySums, weights: Tensor) -> None:
    """Milliseconds of the norm's pass and of the step's, by tile."""
    from crosscope_worker.training import adam_triton

    blocks, scale = ((slice(None), slice(None)),), torch.ones((), device=run.device)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    moments = adam_triton.Moments(first, second, weights.bfloat16())
    rates = adam_triton.Rates(1e-9, 1.0, 0.9, 0.999, 1e-8)
    kept = adam_triton.TILE_ENTRIES, adam_triton.TILE_COLUMNS
    took: dict[str, dict[str, float]] = {"norm": {}, "move": {}}
    try:
        for tile in dict.fromkeys((kept, (1, 1024), (4, 1024), (2, 2048))):
            adam_triton.TILE_ENTRIES, adam_triton.TILE_COLUMNS = tile
            norm = run.timed(lambda: adam_triton.norm(sums, weights, blocks), rounds=8)
            move = run.timed(lambda: adam_triton.step(sums, weights, moments, rates, scale, blocks), rounds=8)
            took["norm"][str(tile)], took["move"][str(tile)] = norm.median, move.median
    finally:
        adam_triton.TILE_ENTRIES, adam_triton.TILE_COLUMNS = kept
    bytes_moved = 4 * weights.nbytes * 2 - weights.nbytes * 2 + weights.nbytes // 2  # three read, three written, a copy
    for name, by_tile in took.items():
        rate = bytes_moved / by_tile[str(kept)] / 1e6 if name == "move" else None
        run.row(f"step.adam.{name}", by_tile[str(kept)], "ms", by_tile=by_tile, gb_s=rate)


def _loss_off(run: Run) -> None:
    """How far the loss after 20 steps lies from that of the dense autograd step from the same weights, the worst."""
    off: dict[str, float] = {}
    small = Run(run.dry)
    small.sizes = replace(run.sizes, d_model=min(run.sizes.d_model, 256), num_latents=min(run.sizes.num_latents, 4096))
    small.sizes = replace(small.sizes, k=min(run.sizes.k, 32), batch=min(run.sizes.batch, 512))
    for variant in ("batch_topk", "l1", "diff_sae"):
        trainer, inputs = prepared(small, variant, lr=1e-4)
        dense = DenseStep(trainer.spec, *trainer.weights, lr=1e-4)
        with float32_products("ieee"):
            for step in range(20):
                ours = trainer.step(inputs[step % NUM_BATCHES], 1e-4).loss
                with torch.enable_grad():
                    theirs = dense.step(inputs[step % NUM_BATCHES])
        off[variant] = abs(ours / theirs - 1)
    run.row("step.loss_off", max(off.values()), "of the loss", by_variant=off)


def _crossing(run: Run) -> None:
    """The largest share of active entries at which entries are faster than the dense formulas, by data type."""
    trainer, inputs = prepared(run, "l1", None)
    step, before = in_turn(inputs, lambda x: trainer.step(x, 1e-9)), active_code.DENSE_ABOVE
    took: dict[str, dict[str, float]] = {}
    try:
        for share in SHARES:
            thin_out(trainer, inputs[0], share)
            for mode, dtype in MODES:
                trainer.training = replace(trainer.training, dtype=dtype)
                for form, above in (("entries", 2.0), ("dense", -1.0)):
                    active_code.DENSE_ABOVE = dict.fromkeys(before, above)
                    timing = run.timed(step, rounds=4, warm_up=2, budget_s=1)
                    took.setdefault(f"{mode}.{form}", {})[f"{100 * share:g} %"] = timing.median
    finally:
        active_code.DENSE_ABOVE = before
    for mode, _ in MODES:
        entries, dense = took[f"{mode}.entries"], took[f"{mode}.dense"]
        faster = [share for share, name in zip(SHARES, entries, strict=True) if entries[name] < dense[name]]
        run.row(f"step.crossing.{mode}", 100 * max(faster, default=0.0), "%", entries_ms=entries, dense_ms=dense)


if __name__ == "__main__":
    sys.exit(main("step", rows))
