"""What a GPU of the H100's kind should reach: the one place of these bounds. Does not know how a row is measured."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Reach:
    """A bound on one row."""

    row: str
    """The row's name; the part before the first dot is its section."""
    what: str
    """The row in words."""
    unit: str
    bound: Literal["at_most", "at_least"]
    number: float

    def met(self, value: float) -> bool:
        """Whether `value` reaches the bound."""
        return value <= self.number if self.bound == "at_most" else value >= self.number

    def __str__(self) -> str:
        sign = "<=" if self.bound == "at_most" else ">="
        return f"{sign} {self.number:,.10g} {self.unit}"


REACH = (
    Reach("step.batch_topk.bf16", "training step, batch_topk, bf16", "ms", "at_most", 14),
    Reach("step.batch_topk.bf16.over_dense", "  against a dense step in bf16", "times as fast", "at_least", 2.3),
    Reach("step.l1.bf16", "training step, l1 at 100 active, bf16", "ms", "at_most", 16),
    Reach("step.diff_sae.bf16", "training step, diff_sae, bf16", "ms", "at_most", 9),
    Reach("step.batch_topk.float32", "training step, batch_topk, float32 as TF32", "ms", "at_most", 20),
    Reach("step.host_syncs", "waits for the device in a step", "waits", "at_most", 2),
    Reach("harvest.mixed", "both models to layer 13, mixed lengths", "tokens/s", "at_least", 100_000),
    Reach("train.end_to_end", "training end to end", "tokens/s", "at_least", 60_000),
    Reach("train.original_run", "the original 200 M token-steps", "h", "at_most", 1),
    Reach("checkpoint.stands_still", "a checkpoint: training stands still", "s", "at_most", 0.5),
    Reach("memory.lowest", "memory: estimate over peak, lowest", "times as much", "at_least", 1),
    Reach("memory.highest", "memory: estimate over peak, highest", "times as much", "at_most", 1.1),
    Reach("analysis.pass", "analysis, 73 728 latents: the pass", "tokens/s", "at_least", 50_000),
    Reach("analysis.finish", "analysis: to finish", "s", "at_most", 5),
    Reach("online.1x64", "one prompt of 64 tokens, models and code", "ms", "at_most", 10),
    Reach("online.32x64", "32 prompts of 64 tokens", "ms", "at_most", 40),
    Reach("online.128x64", "128 prompts of 64 tokens", "ms", "at_most", 110),
    Reach("checks.failed", "equality with CPU and autograd", "failed", "at_most", 0),
    Reach("tests.failed", "tests marked gpu", "failed", "at_most", 0),
)
REACH_OF = {each.row: each for each in REACH}


def bound_of(row: str) -> float | None:
    """The number that a row should reach; None for a row without a bound."""
    found = REACH_OF.get(row)
    return found and found.number
