"""The training of the demo's small language models on tokenised texts.

Does not know what the texts say or where models are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma2ForCausalLM

IGNORED = -100
"""Target of a token that is not learned."""
_POOL = 16
"""Number of batches within which texts of similar length are grouped."""


@dataclass(frozen=True)
class Example:
    """A tokenised text."""

    ids: list[int]
    targets: list[int]
    """`ids`, with IGNORED for tokens that are read but not learned."""


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a model's training."""

    steps: int
    lr: float
    """Peak learning rate of AdamW, after a linear rise; it falls linearly to a tenth at the end."""
    batch_size: int
    """Texts a step."""
    warmup_steps: int = 50

    def factor(self, step: int) -> float:
        """Factor of the learning rate in a step; the first step is 0."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        return rise * (1 - 0.9 * step / self.steps)


def fit(
    model: Gemma2ForCausalLM,
    examples: Sequence[Example],
    schedule: Schedule,
    seed: int,
    report: Callable[[int, float], None],
) -> float:
    """Trains in place on next-token prediction; returns the mean loss (nats a token) of the last tenth of the steps.

    `report(step, loss)` is called after every step; an exception from it ends the training.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    batches = _batches(examples, schedule.batch_size, Random(seed))
    losses: list[float] = []
    for step in range(schedule.steps):
        ids, targets = next(batches)
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten().to(model.device), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        report(step + 1, losses[-1])
    model.eval()
    last = losses[-max(1, schedule.steps // 10) :]
    return sum(last) / len(last)


def _batches(examples: Sequence[Example], size: int, rng: Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches [text, pos] of ids and targets, padded on the right; each example occurs once an epoch."""
    order = list(range(len(examples)))
    while True:
        rng.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), size * _POOL):
            pool = sorted(order[start : start + size * _POOL], key=lambda i: len(examples[i].ids))
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(batches)
        for batch in batches:
            yield pad([examples[i].ids for i in batch], 0), pad([examples[i].targets for i in batch], IGNORED)


def pad(rows: Sequence[list[int]], filler: int) -> torch.Tensor:
    """Rows as one int64 tensor, filled up on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])
