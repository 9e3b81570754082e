"""A training step against those of published trainers, each as its own package makes it; `make peers` installs them.

The published trainers train a sparse autoencoder that is as wide as our two models side by side, so that weights, batch
and k are the same. Their further work in a step counts: the projection of the gradient, rows of norm 1, a scheduler.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import train_step
from bench.rows import Figure, Row, Target
from bench.timing import Ratio, interleave
from bench.train_step import LR, Sizes
from crosscope_proto.dictionaries import ChoosesK

PLACE = Path(sys.prefix) / "peers"
"""Folder in which `make peers` installs the packages of peers.txt."""
Step = Callable[[Tensor], object]
"""A step that trains on `[batch, both]`."""


@dataclass(frozen=True)
class Peer:
    """A published trainer, and the variant of ours that does the same."""

    name: str
    variant: str
    make: Callable[[Sizes], Step]
    """Makes the trainer's step. Raises ImportError if its package is not installed."""
    at_least: float
    """How many times as fast our step must be at a batch of 1 024."""


def rows(quick: bool) -> Iterator[Row]:
    """A row for every trainer and batch size, or one that reports a missing package."""
    sizes = train_step.QUICK if quick else Sizes()
    sys.path.append(str(PLACE))
    for peer in PEERS:
        for batch in sizes.batches:
            try:
                with redirect_stdout(sys.stderr):  # they print what is missing
                    step = peer.make(sizes)
            except ImportError as error:
                yield Row("peers", f"{peer.name}, batch {batch}", {}, not_measured=f"{error}; `make peers` installs it")
                continue
            bounds = (Target("ratio", "at_least", peer.at_least),) if batch == 1024 and not quick else ()
            yield measure(peer, step, sizes, batch, bounds)


def measure(peer: Peer, theirs: Step, sizes: Sizes, batch: int, bounds: tuple[Target, ...]) -> Row:
    """One row."""
    spec = train_step.specs(sizes)[peer.variant]
    trainer, inputs = train_step.prepared(spec, sizes, batch)
    for x in inputs:
        outcome = trainer.step(x, LR)
    ours, others = itertools.cycle(inputs), itertools.cycle(inputs)
    took = interleave(
        {"ours": lambda: trainer.step(next(ours), LR), "theirs": lambda: theirs(next(others))}, sizes.rounds
    )
    rate = {who: batch / statistics.median(seconds) for who, seconds in took.items()}
    return Row(
        name="peers",
        case=f"{peer.name}, batch {batch}",
        sizes={
            "variant": peer.variant,
            "batch": batch,
            "d_model": [sizes.d_model] * 2,
            "num_latents": sizes.num_latents,
            "k": spec.k if isinstance(spec, ChoosesK) else None,
            "active_a_token": outcome.num_active / batch,
        },
        ours=Figure(rate["ours"], "tokens/s"),
        reference=Figure(rate["theirs"], "tokens/s", peer.name),
        ratio=Ratio.of(took["theirs"], took["ours"]),
        targets=bounds,
    )


def batch_topk(sizes: Sizes) -> Step:
    """The trainer from which the published BatchTopK crosscoder trainers derive."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # pyright: ignore[reportMissingImports]

    return updates(BatchTopKTrainer(k=sizes.k, **arguments(sizes)))


def l1(sizes: Sizes) -> Step:
    """The trainer for L1."""
    from dictionary_learning.trainers.standard import StandardTrainer  # pyright: ignore[reportMissingImports]

    return updates(StandardTrainer(**arguments(sizes)))


def arguments(sizes: Sizes) -> dict[str, Any]:
    """The common arguments of dictionary-learning's trainers."""
    width, latents = 2 * sizes.d_model, sizes.num_latents
    model = {"layer": 0, "lm_name": "none", "device": "cpu"}
    return {"steps": 1_000_000, "activation_dim": width, "dict_size": latents, "lr": LR} | model


def updates(trainer: Any) -> Step:
    """The trainer's steps, from the second on; the first one measures the geometric median."""
    numbers = itertools.count(1)
    return lambda x: trainer.update(next(numbers), x)


def sparsify(sizes: Sizes) -> Step:
    """A sparse encoder and decoder, k for each token; the steps of its training loop, without its models."""
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    coder = SparseCoder(2 * sizes.d_model, SparseCoderConfig(num_latents=sizes.num_latents, k=sizes.k))
    optimiser = torch.optim.Adam(coder.parameters(), lr=LR)

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    return step


PEERS = (
    Peer("dictionary-learning, BatchTopK", "batch_topk", batch_topk, 5.0),
    Peer("dictionary-learning, L1", "l1", l1, 4.5),
    Peer("sparsify, TopK with Adam", "batch_topk", sparsify, 1.8),
)
