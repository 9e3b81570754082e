"""Base uselessness: how little a latent's chat direction helps to reconstruct the base model (math §5).

All three scores are `-ln s_j` of a scalar in `x_hat^base(s) = b_dec + sum_{l not in S} f_l D_l^base + sum_{j in S} s_j
f_j D_j^chat`. Let `r_i` be the base residual without S's part,

    r_i = x_i^base - b_dec - sum_{l not in S} f_il D_l^base = e_i^base + sum_{j in S} f_ij D_j^base.

The scalars minimise the mean of `‖r_i - sum_j s_j f_ij D_j^chat‖₂` (published, trained) or the sum of its square (ours,
solved). With S = {j} the minimum of the square is at

    s_j = sum_i f_ij <r_i, D_j^chat> / (C_j ‖D_j^chat‖²)
        = sum_i f_ij <e_i^base, D_j^chat> / (C_j ‖D_j^chat‖²) + <D_j^base, D_j^chat> / ‖D_j^chat‖²,

which is `beta_err^base` of math §4, clipped at zero.

Memory for n = |S|, at most MAX_CHAT_ONLY: `8 n²` bytes for the normal matrix, about four times that for a moment while
a block is added and while it is solved, `4 n d_model` for the base rows of S, and twice RESERVOIR_BYTES for the tokens
that are kept for training, which are copied in a new order for each epoch. If the models' widths differ nothing is
defined, and everything is NaN.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosscope_proto.job_disk import LEAST_RESERVOIR, MAX_CHAT_ONLY, RESERVOIR_BYTES
from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.nnls import nnls
from crosscope_worker.dictionary.crosscoder import Crosscoder

Floats = NDArray[np.float64]

BATCH_TOKENS = LEAST_RESERVOIR
"""Tokens of one training step."""
CHECK_STEPS = 100
"""Training steps, at least, from one check of convergence to the next."""
TOLERANCE = 0.05
"""A trained score has converged if one further step of an exact method moves it by no more."""
BETAS = (0.9, 0.95)
"""Adam's. A theta's slope shrinks with its scalar, by orders of magnitude where base lacks a latent. With torch's 0.999
Adam would remember the large slopes of the beginning for thousands of steps, and barely move."""
EPSILON = 1e-14
"""Adam's: far below any slope. At the floor it is of the size of the floor's square."""


@dataclass(frozen=True)
class Uselessness:
    """Scores, [latent], NaN where undefined, and the settings and figures of their computation."""

    trained: Floats
    least_squares: Floats
    single: Floats
    facts: dict[str, float] = field(default_factory=dict)
    """Steps taken, learning rate, start, floor, sizes of S and of the sample, how many trained scores did not converge,
    agreement of the two joint scores."""

    def sentences(self) -> tuple[str, ...]:
        """What a reader of the trained scores must know: that some have not converged."""
        num_open, steps = (int(self.facts.get(name, 0)) for name in ("not_converged", "steps"))
        if num_open == 0:
            return ()
        scores = np.isfinite(self.trained).sum()
        sentence = (
            f"{num_open} of {scores} trained scores of base uselessness have not converged after {steps} steps; "
            "read base_uselessness_ls in their place, or raise analysis.uselessness_steps"
        )
        return (sentence,)


class ChatOnlySums:
    """The second moments of the codes in S and a sample of residuals, from which the joint scores are computed."""

    def __init__(self, crosscoder: Crosscoder, chat_only: Tensor) -> None:
        """`chat_only: [latent] bool` marks S; members that never fire drop out by themselves."""
        # In a decoupled code the scalars of base would multiply base's code, whose moments are not kept.
        is_defined = crosscoder.d_model[BASE] == crosscoder.d_model[CHAT] and not crosscoder.keep.decoupled
        members = chat_only.nonzero().squeeze(1)
        self.set_size = len(members)
        self.members = members if is_defined and len(members) <= MAX_CHAT_ONLY else members[:0]
        self._base = crosscoder.model_slice(BASE)
        self._rows = crosscoder.decoder(BASE)[self.members]
        device = crosscoder.device
        self._member = torch.full((crosscoder.num_latents,), -1, dtype=torch.int64, device=device)
        self._member[self.members] = torch.arange(len(self.members), device=device)
        self.second_moments = torch.zeros(len(self.members), len(self.members), dtype=torch.float64, device=device)
        """[member, member] `sum_i f_ij f_il`."""
        self._capacity = max(BATCH_TOKENS, RESERVOIR_BYTES // (4 * crosscoder.d_model[BASE]))
        self._sample = _Sample.empty(crosscoder.d_model[BASE], device)

    def add(self, block: Block) -> None:
        """Adds the tokens of a block."""
        member = self._member[block.latents]
        ours = member >= 0
        if not bool(ours.any()):
            return
        member, raw = member[ours], block.values[ours]
        tokens, compact = torch.unique(block.tokens[ours], return_inverse=True)
        codes = torch.zeros(len(tokens), len(self.members), dtype=torch.float32, device=raw.device)
        codes[compact, member] = raw
        rows, counts = torch.unique_consecutive(member, return_counts=True)
        starts = counts.cumsum(0) - counts
        self.second_moments[rows] += torch.nn.functional.embedding_bag(
            compact, codes, starts, mode="sum", per_sample_weights=raw
        ).double()
        order = torch.argsort(compact, stable=True)
        residual = block.error[tokens][:, self._base]
        own = torch.bincount(compact, minlength=len(tokens))
        residual = residual + torch.nn.functional.embedding_bag(
            member[order], self._rows, own.cumsum(0) - own, mode="sum", per_sample_weights=raw[order]
        )
        self._join(_Sample(block.key[tokens], residual, own, member[order], raw[order]))

    def state(self) -> dict[str, Tensor]:
        """The sums and the sample by name."""
        return {"second_moments": self.second_moments} | vars(self.sample())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state of the same crosscoder."""
        device = self.second_moments.device
        self.second_moments.copy_(state["second_moments"])
        self._sample = _Sample(*(state[name].to(device) for name in _Sample.__dataclass_fields__))

    def merge(self, other: "ChatOnlySums") -> None:
        """Adds the sums and the sample of other tokens, which come behind."""
        self.second_moments += other.second_moments
        self._join(other._sample)

    def _join(self, more: "_Sample") -> None:
        """Adds tokens to the sample."""
        self._sample = self._sample.joined(more)
        if len(self._sample.keys) > 2 * self._capacity:
            self._sample = self._sample.thinned(self._capacity)

    def sample(self) -> "_Sample":
        """The kept tokens."""
        return self._sample.thinned(self._capacity)


@dataclass(frozen=True)
class _Sample:
    """Tokens with their keys (Block.key); a token's entries are consecutive, in token order."""

    keys: Tensor
    residual: Tensor
    """[token, d_model]."""
    num_entries: Tensor
    """[token]."""
    members: Tensor
    """[entry] index into the members of S."""
    values: Tensor
    """[entry] raw code."""

    @classmethod
    def empty(cls, d_model: int, device: torch.device) -> "_Sample":
        none = torch.zeros(0, device=device)
        keys = torch.zeros(0, dtype=torch.float64, device=device)
        index = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(keys, torch.zeros(0, d_model, device=device), index, index, none)

    def joined(self, other: "_Sample") -> "_Sample":
        """Both samples' tokens."""
        names = self.__dataclass_fields__
        return _Sample(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in names))

    def thinned(self, capacity: int) -> "_Sample":
        """The `capacity` tokens with the smallest keys: a uniform sample of all tokens ever added."""
        if len(self.keys) <= capacity:
            return self
        return self.chosen(torch.topk(self.keys, capacity, largest=False).indices.sort().values)

    def chosen(self, tokens: Tensor) -> "_Sample":
        """Some of the tokens, in the given order."""
        starts = self.num_entries.cumsum(0) - self.num_entries
        counts = self.num_entries[tokens]
        first = counts.cumsum(0) - counts
        entries = torch.arange(int(counts.sum()), device=counts.device) + (starts[tokens] - first).repeat_interleave(
            counts
        )
        return _Sample(self.keys[tokens], self.residual[tokens], counts, self.members[entries], self.values[entries])


def score(
    crosscoder: Crosscoder,
    sums: ChatOnlySums,
    error: Floats,
    beta_err_base: Floats,
    spec: AnalysisSpec,
) -> Uselessness:
    """The three scores of every latent.

    `error: [latent]` is `sum_i f_ij <e_i^base, D_j^chat>`; `beta_err_base: [latent]` is taken along the chat row.
    """
    num_latents = crosscoder.num_latents
    trained, solved = np.full(num_latents, np.nan), np.full(num_latents, np.nan)
    members = sums.members.cpu().numpy()
    moments = sums.second_moments.cpu().numpy()
    living = np.diag(moments) > 0
    sample, num_open, steps = sums.sample(), 0, 0
    if living.any():
        chat = crosscoder.decoder(CHAT)[sums.members].double().cpu().numpy()
        base = crosscoder.decoder(BASE)[sums.members].double().cpu().numpy()
        gram = moments * (chat @ chat.T)
        target = error[members] + (moments * (chat @ base.T)).sum(axis=1)
        scalars = nnls(gram[np.ix_(living, living)], target[living])
        solved[members[living]] = -np.log(np.maximum(scalars, spec.uselessness_floor))
        found = train_scalars(sample, crosscoder.decoder(CHAT)[sums.members], spec)
        seen = found.visited.numpy()
        trained[members[seen]] = -np.log(found.scalars.numpy())[seen]
        num_open, steps = int(seen.sum() - found.converged.sum()), found.steps
    single = -np.log(np.maximum(beta_err_base, spec.uselessness_floor))
    facts = {
        "set_size": float(sums.set_size),
        "living_set_size": float(living.sum()),
        "sample_tokens": float(len(sample.keys)),
        "steps": float(steps),
        "not_converged": float(num_open),
        "batch_tokens": float(BATCH_TOKENS),
        "lr": spec.uselessness_lr,
        "start": spec.uselessness_start,
        "floor": spec.uselessness_floor,
    }
    both = np.isfinite(trained) & np.isfinite(solved)
    if both.sum() > 1:
        facts |= correlations(trained[both], solved[both])
    facts = {name: value for name, value in facts.items() if np.isfinite(value)}
    return Uselessness(trained, solved, single, facts)


@dataclass(frozen=True)
class TrainedScalars:
    """Scalars of the published recipe, for every member of S."""

    scalars: Tensor
    """[member] float64: the geometric mean over the last steps, at least the floor."""
    visited: Tensor
    """[member] bool. A member that fires on no token of any step keeps its first scalar."""
    converged: Tensor
    """[member] bool."""
    steps: int


def train_scalars(sample: _Sample, rows: Tensor, spec: AnalysisSpec) -> TrainedScalars:
    """The published recipe, until it converges: Adam on `mean_i ‖r_i - sum_j (elu(theta_j)+1) f_ij v_j‖₂`.

    `rows: [member, d_model]` are the chat decoder rows. Steps walk through the sample in a shuffled order, epoch after
    epoch, from a fixed seed. After each epoch, and at least CHECK_STEPS steps, `still_moving` asks whether the mean
    theta of these steps is a solution. Training ends when it is for all members, or after `uselessness_steps`.
    """
    lowest = math.log(spec.uselessness_floor)
    theta = torch.full((len(rows),), spec.uselessness_start, dtype=torch.float64, device=rows.device)
    optimiser = torch.optim.Adam([theta], lr=spec.uselessness_lr, betas=BETAS, eps=EPSILON)
    visited = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    batches, steps = _batches(sample), 0
    interval = max(CHECK_STEPS, math.ceil(len(sample.keys) / BATCH_TOKENS))
    while True:
        count = min(interval, spec.uselessness_steps - steps)
        summed = torch.zeros_like(theta)
        for batch in itertools.islice(batches, count):
            visited[batch.members] = True
            scalars = torch.nn.functional.elu(theta) + 1
            # elu's own slope is the scalar below 1, and 1 above.
            theta.grad = -pulls(batch, rows, scalars)[0] / len(batch.keys) * scalars.clamp_max(1)
            optimiser.step()
            theta.clamp_(min=lowest)
            summed += theta
        steps += count
        scalars = torch.nn.functional.elu(summed / count) + 1
        converged = ~still_moving(sample, rows, scalars, spec.uselessness_floor)
        if steps == spec.uselessness_steps or bool(converged[visited].all()):
            return TrainedScalars(scalars.cpu(), visited.cpu(), (converged & visited).cpu(), steps)


def still_moving(sample: _Sample, rows: Tensor, scalars: Tensor, floor: float) -> Tensor:
    """[member] bool: whether one step of Weiszfeld's method moves a member's score by more than TOLERANCE.

    Each token's distance is bounded from above by the parabola in `s_j` that touches it here. The sum of the parabolas
    is least at `s_j + slope / curvature` (`pulls`). Scalars stand still there only if they minimise the loss, or lie at
    the floor.
    """
    slope, curvature = torch.zeros_like(scalars), torch.zeros_like(scalars)
    for batch in _in_turn(sample):
        of_batch = pulls(batch, rows, scalars)
        slope += of_batch[0]
        curvature += of_batch[1]
    step = torch.where(curvature > 0, slope / curvature, 0)
    return ((scalars + step).clamp_min(floor).log() - scalars.log()).abs() > TOLERANCE


def pulls(batch: _Sample, rows: Tensor, scalars: Tensor) -> tuple[Tensor, Tensor]:
    """[member] float64, twice: the slope `sum_i f_ij <e_i, v_j> / ‖e_i‖` by which the distances fall as a scalar grows,
    and the curvature `sum_i f_ij² ‖v_j‖² / ‖e_i‖`; `e_i = r_i - sum_j s_j f_ij v_j`.
    """
    member, token = batch.members, torch.repeat_interleave(batch.num_entries)
    starts = batch.num_entries.cumsum(0) - batch.num_entries
    weights = scalars[member].to(rows.dtype) * batch.values
    left = batch.residual - torch.nn.functional.embedding_bag(
        member, rows, starts, mode="sum", per_sample_weights=weights
    )
    distance = left.norm(dim=1).clamp_min(torch.finfo(left.dtype).tiny)
    own = rows[member]
    slopes = batch.values * (left[token] * own).sum(dim=1) / distance[token]
    curvatures = batch.values.square() * own.square().sum(dim=1) / distance[token]
    zero = torch.zeros_like(scalars)
    return zero.index_add(0, member, slopes.double()), zero.index_add(0, member, curvatures.double())


def _batches(sample: _Sample) -> Iterator[_Sample]:
    """Endless steps through the sample, shuffled anew in every epoch; an epoch's last step may have fewer tokens."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    while True:
        order = torch.randperm(len(sample.keys), generator=generator)
        yield from _in_turn(sample.chosen(order.to(sample.keys.device)))


def _in_turn(sample: _Sample) -> Iterator[_Sample]:
    """The tokens of a sample, BATCH_TOKENS at a time."""
    ends = [0, *sample.num_entries.cumsum(0)[BATCH_TOKENS - 1 :: BATCH_TOKENS].tolist(), len(sample.members)]
    for i, first in enumerate(range(0, len(sample.keys), BATCH_TOKENS)):
        tokens, entries = slice(first, first + BATCH_TOKENS), slice(ends[i], ends[i + 1])
        yield _Sample(
            sample.keys[tokens],
            sample.residual[tokens],
            sample.num_entries[tokens],
            sample.members[entries],
            sample.values[entries],
        )


def correlations(a: Floats, b: Floats) -> dict[str, float]:
    """Pearson's and Spearman's correlation of two scores [any]; NaN where one of them is constant."""
    from scipy import stats  # the import takes a second, so it waits for an analysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        (pearson, _), (spearman, _) = stats.pearsonr(a, b), stats.spearmanr(a, b)
    return {"pearson_trained_ls": float(cast("float", pearson)), "spearman_trained_ls": float(cast("float", spearman))}
