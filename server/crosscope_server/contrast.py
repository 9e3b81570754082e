"""Which latents tell two sets of prompts apart, from the scores of all latents on all prompts (math §12).

Plain numpy. Knows nothing about prompts, tokens or calls. Nearly all scores are 0, so they are kept as entries, and
zeros are ranked without being written down.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_FOLDS = 5
NUM_SHUFFLES = 200
_CHUNK = 2048
"""Latents whose ranks are held densely at a time."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of latents on prompts: entries by latent and, within a latent, ascending by score. All others are 0."""

    num_prompts: int
    latents: Ints
    """[latent] ids of the latents that score anywhere, ascending"""
    starts: Ints
    """[latent + 1]; the entries of latent i are starts[i] : starts[i + 1]"""
    prompts: Ints
    """[entry]"""
    values: NDArray[np.float32]
    """[entry], all > 0"""

    @classmethod
    def of(cls, rows: Sequence[tuple[NDArray[np.uint32], NDArray[np.float32]]]) -> "Scores":
        """Scores from a row a prompt: latents, each once, and their scores, all > 0."""
        counts = [len(latents) for latents, _ in rows]
        prompts = np.repeat(np.arange(len(rows)), counts)
        ids = np.concatenate([latents for latents, _ in rows]).astype(np.int64)
        values = np.concatenate([values for _, values in rows])
        order = np.lexsort((prompts, values, ids))
        latents, starts = np.unique(ids[order], return_index=True)
        return cls(len(rows), latents, np.append(starts, len(ids)), prompts[order], values[order])

    def columns(self, chosen: Ints) -> Floats:
        """[prompt, chosen]: all scores of some latents, by their index."""
        dense = np.zeros((self.num_prompts, len(chosen)))
        for column, index in enumerate(chosen):
            entries = slice(self.starts[index], self.starts[index + 1])
            dense[self.prompts[entries], column] = self.values[entries]
        return dense

    def among(self, prompts: Flags) -> "Scores":
        """The same latents, scored on some prompts, which are counted anew."""
        kept = prompts[self.prompts]
        starts = np.append(0, np.cumsum(kept))[self.starts]
        renumbered = np.cumsum(prompts) - 1
        return Scores(int(prompts.sum()), self.latents, starts, renumbered[self.prompts[kept]], self.values[kept])


@dataclass(frozen=True)
class Telling:
    """One latent as a detector of the first set."""

    latent: int
    auc: float
    auc_se: float
    mean_first: float
    mean_second: float
    p_value: float


@dataclass(frozen=True)
class Contrast:
    """Latents that tell two sets apart, most telling first, and how much of that holds on prompts left aside."""

    entries: list[Telling]
    held_out_auc: float
    """NaN where no latent fires."""
    held_out_auc_se: float
    shuffled_auc: float
    num_latents: int


def contrast(scores: Scores, is_first: Flags, limit: int, seed: int) -> Contrast:
    """Which latents tell the first set from the second; equal seeds give equal results.

    Each set has at least NUM_FOLDS prompts. `is_first: [prompt]`.
    """
    num_latents = len(scores.latents)
    if not num_latents:
        return Contrast([], np.nan, np.nan, np.nan, 0)
    random = np.random.default_rng(seed)
    folds = _folds(is_first, random)
    labels = np.stack([is_first, *(_shuffled(is_first, folds, random) for _ in range(NUM_SHUFFLES))])
    auc = np.empty(num_latents)
    best = np.zeros(len(labels))
    for chunk, values in aucs(scores, labels):
        auc[chunk] = values[0]
        best = np.maximum(best, np.abs(values - 0.5).max(axis=1))
    held_out = _held_out(scores, labels, folds)
    size = np.abs(auc - 0.5)
    chosen = np.lexsort((scores.latents, -size))[:limit]
    reaching = NUM_SHUFFLES - np.searchsorted(np.sort(best[1:]), size[chosen] - 1e-12)
    columns = scores.columns(chosen)
    figures = (
        scores.latents[chosen],
        auc[chosen],
        standard_errors(columns, is_first),
        columns[is_first].mean(axis=0),
        columns[~is_first].mean(axis=0),
        (reaching + 1) / (NUM_SHUFFLES + 1),
    )
    return Contrast(
        [Telling(*row) for row in zip(*(column.tolist() for column in figures), strict=True)],
        held_out_auc=float(held_out[0].mean()),
        held_out_auc_se=float(held_out[0].std(ddof=1) / np.sqrt(NUM_FOLDS)),
        shuffled_auc=float(held_out[1:].mean()),
        num_latents=num_latents,
    )


def aucs(scores: Scores, labels: Flags) -> Iterator[tuple[slice, Floats]]:
    """AUC of every latent under every labelling, [labelling, latent], a run of latents at a time; `labels: [labelling,
    prompt]`. Ties count half.

    The sum of the first set's mid-ranks gives the AUC (Mann and Whitney). Twice a mid-rank is a whole number, and the
    sums of 1 000 of them fit float32 exactly.
    """
    doubled = _doubled_ranks(scores)
    num_zeros = scores.num_prompts - np.diff(scores.starts)
    first = labels.sum(axis=1)
    pairs = first * (scores.num_prompts - first)
    told = labels.astype(np.float32)
    for start in range(0, len(scores.latents), _CHUNK):
        chunk = slice(start, min(start + _CHUNK, len(scores.latents)))
        entries = slice(scores.starts[chunk.start], scores.starts[chunk.stop])
        of_zero = num_zeros[chunk] + 1
        column = np.repeat(np.arange(chunk.stop - chunk.start), np.diff(scores.starts[chunk.start : chunk.stop + 1]))
        above_zero = np.zeros((scores.num_prompts, chunk.stop - chunk.start), np.float32)
        above_zero[scores.prompts[entries], column] = doubled[entries] - of_zero[column]
        sums = (told @ above_zero).astype(np.float64) + first[:, None] * of_zero
        yield chunk, (sums - (first * (first + 1))[:, None]) / (2 * pairs)[:, None]


def _doubled_ranks(scores: Scores) -> Ints:
    """[entry]: twice the mid-rank of each entry among all prompts' scores of its latent; ranks begin at 1."""
    counts = np.diff(scores.starts)
    latent = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(latent)) - scores.starts[:-1][latent]
    is_new = np.append(True, (latent[1:] != latent[:-1]) | (scores.values[1:] != scores.values[:-1]))[: len(latent)]
    tie = np.cumsum(is_new) - 1
    firsts = np.flatnonzero(is_new)
    sizes = np.diff(np.append(firsts, len(latent)))
    return (2 * place[firsts] + sizes + 1)[tie] + 2 * (scores.num_prompts - counts)[latent]


def standard_errors(columns: Floats, is_first: Flags) -> Floats:
    """[latent]: standard errors of AUCs (DeLong, DeLong and Clarke-Pearson 1988); `columns: [prompt, latent]`.

    The spread, over the prompts of each set, of the share of the other set that a prompt wins against. 0 where a latent
    tells the sets apart without a fault.
    """
    first, second = columns[is_first], columns[~is_first]
    variance = np.zeros(columns.shape[1])
    for own, other in ((first, second), (second, first)):
        order = np.sort(other, axis=0)
        for latent in range(columns.shape[1]):
            below, up_to = (np.searchsorted(order[:, latent], own[:, latent], side) for side in ("left", "right"))
            variance[latent] += ((below + up_to) / (2 * len(other))).var(ddof=1) / len(own)
    return np.sqrt(variance)


def _folds(is_first: Flags, random: np.random.Generator) -> Ints:
    """[prompt]: a fold for each; every fold has its share of both sets."""
    folds = np.empty(len(is_first), np.int64)
    for members in (np.flatnonzero(is_first), np.flatnonzero(~is_first)):
        folds[random.permutation(members)] = np.arange(len(members)) % NUM_FOLDS
    return folds


def _shuffled(is_first: Flags, folds: Ints, random: np.random.Generator) -> Flags:
    """Labels exchanged among the prompts of each fold, so that a fold keeps its share of both sets."""
    labels = is_first.copy()
    for fold in range(NUM_FOLDS):
        members = np.flatnonzero(folds == fold)
        labels[members] = is_first[random.permutation(members)]
    return labels


def _held_out(scores: Scores, labels: Flags, folds: Ints) -> Floats:
    """[labelling, fold]: AUC, in the fold, of the latent with the largest |AUC - 1/2| in the other folds. Its sign
    there says which set should score higher here. Of equally good latents the first is taken.
    """
    held_out = np.empty((len(labels), NUM_FOLDS))
    for fold in range(NUM_FOLDS):
        others = folds != fold
        largest, chosen, rises = np.full(len(labels), -1.0), np.zeros(len(labels), np.int64), np.ones(len(labels), bool)
        for chunk, values in aucs(scores.among(others), labels[:, others]):
            size = np.abs(values - 0.5)
            index = size.argmax(axis=1)
            found = np.take_along_axis(size, index[:, None], 1)[:, 0]
            is_better = found > largest + 1e-12
            largest = np.where(is_better, found, largest)
            chosen = np.where(is_better, index + chunk.start, chosen)
            rises = np.where(is_better, np.take_along_axis(values, index[:, None], 1)[:, 0] >= 0.5, rises)
        latents, column = np.unique(chosen, return_inverse=True)
        here = scores.columns(latents)[~others][:, column]
        first = labels[:, ~others].T
        auc = np.array([_auc(here[first[:, i], i], here[~first[:, i], i]) for i in range(len(labels))])
        held_out[:, fold] = np.where(rises, auc, 1 - auc)
    return held_out


def _auc(first: Floats, second: Floats) -> float:
    difference = first[:, None] - second
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
