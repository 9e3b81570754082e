"""A training step: `Trainer.step` against a dense autograd step, and against its floor.

The floor is only the encoder's product and a fused optimiser step on weights of the same shapes. Activations are sums
of decoder rows, some frequent and most rare, so that codes look like those of a training in progress: about k latents a
token, and for penalised variants a bias that leaves ACTIVE_SHARE of the entries.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.dense_step import DenseStep
from bench.rows import Figure, Floor, Row, Target
from bench.timing import Ratio, interleave
from crosscope_proto.dictionaries import ChoosesK, Known, Penalised, dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.training.trainer import Trainer

ACTIVE_SHARE = 0.005
"""Share of active entries in a code that a penalty makes sparse: 82 of 16 384."""
LR = 1e-5
"""A learning rate so low that codes do not change during the measurement."""
MAIN = ("batch_topk", "l1")
"""The dictionaries that are measured at both batch sizes: one that keeps k latents, and one with a penalty."""
NUM_BATCHES = 4
"""Number of different batches, used in turn, each once before anything is measured."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement; variants take their shares of latents from it."""

    d_model: int = 512
    num_latents: int = 16_384
    k: int = 50
    batches: tuple[int, ...] = (1024, 2048)
    rounds: int = 5


QUICK = Sizes(d_model=32, num_latents=512, k=8, batches=(64,), rounds=2)


def specs(sizes: Sizes) -> dict[str, Known]:
    """A dictionary of each variant."""
    latents, k = sizes.num_latents, sizes.k
    own: dict[str, dict[str, Any]] = {
        "batch_topk": {"k": k},
        "l1": {"mu": 0.041},
        "designated_shared": {"mu": 0.041, "num_shared": latents // 16, "shared_penalty": 0.1},
        "dfc": {"k": k, "num_base_only": latents // 16, "num_chat_only": latents // 16},
        "delta": {"k": k - k // 4, "num_delta": latents // 16, "k_delta": k // 4, "delta_weight": 1.0},
        "diff_sae": {"k": k},
        "topk": {"k": k},
        "jumprelu": {"mu": 0.01, "initial_threshold": 0.001, "bandwidth": 0.001},
        "matryoshka": {"k": k},
    }
    return {name: dictionary(variant=name, num_latents=latents, **fields) for name, fields in own.items()}


def rows(quick: bool) -> Iterator[Row]:
    """A row for each of the main variants and every batch size."""
    sizes = QUICK if quick else Sizes()
    for name in MAIN:
        for batch in sizes.batches:
            yield measure("train_step", name, sizes, batch, () if quick else targets(batch))


def targets(batch: int) -> tuple[Target, ...]:
    """The targets of a step at a batch size."""
    if batch == 1024:
        return Target("ratio", "at_least", 5.0), Target("ours", "at_least", 2800.0)
    return (Target("floor", "at_most", 1.7),)


def measure(bench: str, name: str, sizes: Sizes, batch: int, bounds: tuple[Target, ...]) -> Row:
    """One row of a bench: a step of the variant `name`."""
    spec = specs(sizes)[name]
    trainer, inputs = prepared(spec, sizes, batch)
    dense = DenseStep(spec, *trainer.weights, lr=LR)
    floor = FloorStep(trainer)
    outcome = trainer.step(inputs[0], LR)
    loss_difference = abs(outcome.loss / dense.step(inputs[0]) - 1)
    for x in inputs[1:]:
        outcome = trainer.step(x, LR)
    turn = {"ours": 0, "dense": 0, "floor": 0}

    def next_batch(who: str) -> Tensor:
        turn[who] += 1
        return inputs[turn[who] % NUM_BATCHES]

    took = interleave(
        {
            "ours": lambda: trainer.step(next_batch("ours"), LR),
            "dense": lambda: dense.step(next_batch("dense")),
            "floor": lambda: floor.step(next_batch("floor")),
        },
        sizes.rounds,
    )
    rate = {who: batch / statistics.median(seconds) for who, seconds in took.items()}
    return Row(
        name=bench,
        case=f"{name}, batch {batch}",
        sizes={
            "variant": name,
            "batch": batch,
            "d_model": [sizes.d_model] * 2,
            "num_latents": sizes.num_latents,
            "k": spec.k if isinstance(spec, ChoosesK) else None,
            "active_a_token": outcome.num_active / batch,
            "loss_difference": loss_difference,
        },
        ours=Figure(rate["ours"], "tokens/s"),
        reference=Figure(rate["dense"], "tokens/s", "dense autograd, clipping, Adam"),
        ratio=Ratio.of(took["dense"], took["ours"]),
        floor=Floor(
            Figure(rate["floor"], "tokens/s", "encoder product, fused Adam"), Ratio.of(took["ours"], took["floor"])
        ),
        targets=bounds,
    )


def prepared(spec: Known, sizes: Sizes, batch: int) -> tuple[Trainer, list[Tensor]]:
    """A trainer, and NUM_BATCHES batches whose codes look like those of a training in progress."""
    trainer = Trainer(spec, TrainingSpec(batch_size=batch, lr=LR), (sizes.d_model, sizes.d_model))
    inputs = [activations(trainer, sizes, batch, seed) for seed in range(NUM_BATCHES)]
    if isinstance(spec, Penalised):
        _thin_out(trainer, inputs[0])
    return trainer, inputs


class FloorStep:
    """The encoder's product and the optimiser's step, on weights of a trainer's shapes."""

    def __init__(self, trainer: Trainer) -> None:
        self.encoder, self.b_enc, *others = weights = [weight.detach().clone() for weight in trainer.weights]
        for weight in weights:
            weight.grad = torch.full_like(weight, 1e-6)
        self.optimiser = torch.optim.Adam([self.encoder, self.b_enc, *others], lr=LR, fused=True)

    def step(self, x: Tensor) -> None:
        """x: [batch, width]."""
        torch.addmm(self.b_enc, x, self.encoder.T)
        self.optimiser.step()


def activations(trainer: Trainer, sizes: Sizes, batch: int, seed: int) -> Tensor:
    """The dictionary's input, [batch, width]: on every token k rows fire with strengths of 0.5 to 1.5, plus noise.

    The frequencies of rows span three orders of magnitude. The strength in the base model is the row's own share, 0 to
    1, of the strength in chat.
    """
    fixed, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + seed)
    rows = trainer.weights.decoder.split(sizes.d_model, dim=1)  # one of diff_sae
    frequency = 10 ** (-3 * torch.rand(sizes.num_latents, generator=fixed))
    base_share = torch.rand(sizes.num_latents, generator=fixed)
    fires = torch.multinomial(frequency, batch * sizes.k, replacement=True, generator=draw).view(batch, sizes.k)
    strength = 0.5 + torch.rand(batch, sizes.k, generator=draw)

    def summed(rows: Tensor, weights: Tensor) -> Tensor:
        noise = 0.02 * torch.randn(batch, sizes.d_model, generator=draw)
        return torch.nn.functional.embedding_bag(fires, rows, mode="sum", per_sample_weights=weights) + noise

    base, chat = summed(rows[0], strength * base_share[fires]), summed(rows[-1], strength)
    return trainer.variant.streams.read(torch.cat([base, chat], 1), trainer.d_model)


def _thin_out(trainer: Trainer, x: Tensor) -> None:
    """Sets the encoder's bias so that ACTIVE_SHARE of the code of `x` is active."""
    products = (x @ trainer.weights.encoder.T).reshape(-1)
    trainer.weights.b_enc.fill_(-float(torch.topk(products, int(ACTIVE_SHARE * len(products))).values[-1]))
