"""A training step of the dictionaries that `train_step` leaves out, at its smaller batch and in fewer rounds."""

from collections.abc import Iterator
from dataclasses import replace

from bench import train_step
from bench.rows import Row

ROUNDS = 3


def rows(quick: bool) -> Iterator[Row]:
    """A row for every variant that is not one of the main ones."""
    sizes = train_step.QUICK if quick else replace(train_step.Sizes(), rounds=ROUNDS)
    batch = sizes.batches[0]
    for name in train_step.specs(sizes):
        if name not in train_step.MAIN:
            yield train_step.measure("variants", name, sizes, batch, () if quick else train_step.targets(batch))
