"""A training step against those of published trainers, each as its own package makes it: `make peers` installs them.

Both train a sparse autoencoder; theirs is as wide as our two models side by side, so that the weights, the batch and k
are the same. What a step of theirs does besides is part of it: the gradient's projection, rows of norm 1, a scheduler.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from bench import train_step
from bench.measure import Ratio, interleave
from bench.rows import Figure, Row, Target
from bench.train_step import LR, NUM_BATCHES, Sizes
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.training.trainer import Trainer

PLACE = Path(sys.prefix) / "peers"
"""Where `make peers` puts the packages of peers.txt."""
Step = Callable[[Tensor], object]
"""Trains on `[batch, both]`."""


def rows(quick: bool) -> Iterator[Row]:
    """A row for every package and batch size, or one that says that a package is not there."""
    sizes = train_step.QUICK if quick else Sizes()
    sys.path.append(str(PLACE))
    for name, make in PEERS.items():
        for batch in sizes.batches:
            try:
                with redirect_stdout(sys.stderr):  # they print what they lack
                    step = make(sizes)
            except ImportError as error:
                yield Row("peers", f"{name}, batch {batch}", {}, not_measured=f"{error}; `make peers` installs it")
                continue
            at_least = AT_LEAST[name] if batch == 1024 and not quick else None
            yield measure(name, step, sizes, batch, at_least)


def measure(name: str, theirs: Step, sizes: Sizes, batch: int, at_least: float | None) -> Row:
    """One row."""
    spec = train_step.specs(sizes)["batch_topk"]
    trainer = Trainer(spec, TrainingSpec(batch_size=batch, lr=LR), (sizes.d_model, sizes.d_model))
    inputs = [train_step.activations(trainer, spec, sizes, batch, seed) for seed in range(NUM_BATCHES)]
    for x in inputs:
        trainer.step(x, LR)
    ours, others = itertools.cycle(inputs), itertools.cycle(inputs)
    took = interleave(
        {"ours": lambda: trainer.step(next(ours), LR), "theirs": lambda: theirs(next(others))}, sizes.rounds
    )
    rate = {who: batch / statistics.median(seconds) for who, seconds in took.items()}
    return Row(
        name="peers",
        case=f"{name}, batch {batch}",
        sizes={"batch": batch, "d_model": [sizes.d_model] * 2, "num_latents": sizes.num_latents, "k": spec.k},
        ours=Figure(rate["ours"], "tokens/s"),
        reference=Figure(rate["theirs"], "tokens/s", f"{name}, {WHAT[name]}"),
        ratio=Ratio.of(took["theirs"], took["ours"]),
        targets=() if at_least is None else (Target("ratio", "at_least", at_least),),
    )


def dictionary_learning(sizes: Sizes) -> Step:
    """The trainer that the published crosscoders' own grew from."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # pyright: ignore[reportMissingImports]

    trainer = BatchTopKTrainer(
        steps=1_000_000,
        activation_dim=2 * sizes.d_model,
        dict_size=sizes.num_latents,
        k=sizes.k,
        layer=0,
        lm_name="none",
        lr=LR,
        device="cpu",
    )
    numbers = itertools.count(1)  # at step 0 it takes the geometric median
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


PEERS: Mapping[str, Callable[[Sizes], Step]] = {"dictionary-learning": dictionary_learning, "sparsify": sparsify}
WHAT = {"dictionary-learning": "BatchTopK", "sparsify": "TopK, Adam"}
AT_LEAST = {"dictionary-learning": 5.0, "sparsify": 1.8}
"""How many times as fast a step has to be at batch 1 024."""
