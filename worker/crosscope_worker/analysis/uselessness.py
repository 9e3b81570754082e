"""Base uselessness: how little a latent's chat direction helps to reconstruct the base model (math §5).

All three scores are `-ln s_j` of a scalar in `x_hat^base(s) = b_dec + sum_{l not in S} f_l D_l^base + sum_{j in S} s_j
f_j D_j^chat`. Let `r_i` be the base residual without S's part,

    r_i = x_i^base - b_dec - sum_{l not in S} f_il D_l^base = e_i^base + sum_{j in S} f_ij D_j^base.

The scalars minimise the mean of `‖r_i - sum_j s_j f_ij D_j^chat‖₂` (published, trained) or the sum of its square (ours,
solved). With S = {j} the minimum of the square is at

    s_j = sum_i f_ij <r_i, D_j^chat> / (C_j ‖D_j^chat‖²)
        = sum_i f_ij <e_i^base, D_j^chat> / (C_j ‖D_j^chat‖²) + <D_j^base, D_j^chat> / ‖D_j^chat‖²,

which is `beta_err^base` of math §4, clipped at zero.

Memory for n = |S|, at most MAX_SET: `8 n²` bytes for the normal matrix, about four times that for a moment while a
block is added and while it is solved, `4 n d_model` for the base rows of S, and twice RESERVOIR_BYTES for the tokens
that are kept for training. If the models' widths differ nothing is defined, and everything is NaN.
"""

import warnings
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.nnls import nnls
from crosscope_worker.dictionary.crosscoder import Crosscoder

Floats = NDArray[np.float64]

MAX_SET = 8192
"""The largest S for which the joint scores are computed. Above it they are NaN, and `set_size` in the manifest says
why."""
RESERVOIR_BYTES = 128 << 20
"""Memory for residuals kept for training, as float32. If S fires on more tokens, the residuals are a uniform sample of
these; on other tokens the loss does not depend on the scalars."""
BATCH_TOKENS = 1024
"""Tokens of one training step."""


@dataclass(frozen=True)
class Uselessness:
    """Scores, [latent], NaN where undefined, and the settings and figures of their computation."""

    trained: Floats
    least_squares: Floats
    single: Floats
    facts: dict[str, float] = field(default_factory=dict)
    """Steps, learning rate, start, floor, sizes of S and of the sample, agreement of the two joint scores."""


class ChatOnlySums:
    """The second moments of the codes in S and a sample of residuals, from which the joint scores are computed."""

    def __init__(self, crosscoder: Crosscoder, chat_only: Tensor) -> None:
        """`chat_only: [latent] bool` marks S; members that never fire drop out by themselves."""
        # In a decoupled code the scalars of base would multiply base's code, whose moments are not kept.
        is_defined = crosscoder.d_model[BASE] == crosscoder.d_model[CHAT] and not crosscoder.keep.decoupled
        members = chat_only.nonzero().squeeze(1)
        self.set_size = len(members)
        self.members = members if is_defined and len(members) <= MAX_SET else members[:0]
        self._base = crosscoder.model_slice(BASE)
        self._rows = crosscoder.decoder(BASE)[self.members]
        device = crosscoder.device
        self._member = torch.full((crosscoder.num_latents,), -1, dtype=torch.int64, device=device)
        self._member[self.members] = torch.arange(len(self.members), device=device)
        self.second_moments = torch.zeros(len(self.members), len(self.members), dtype=torch.float64, device=device)
        """[member, member] `sum_i f_ij f_il`."""
        self._capacity = max(BATCH_TOKENS, RESERVOIR_BYTES // (4 * crosscoder.d_model[BASE]))
        self._keys = torch.Generator(device="cpu").manual_seed(0)
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
        keys = torch.rand(len(tokens), generator=self._keys).to(raw.device)
        self._sample = self._sample.joined(_Sample(keys, residual, own, member[order], raw[order]))
        if len(self._sample.keys) > 2 * self._capacity:
            self._sample = self._sample.thinned(self._capacity)

    def sample(self) -> "_Sample":
        """The kept tokens."""
        return self._sample.thinned(self._capacity)


@dataclass(frozen=True)
class _Sample:
    """Tokens with their random keys; a token's entries are consecutive, in token order."""

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
        index = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(none, torch.zeros(0, d_model, device=device), index, index, none)

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
    sample = sums.sample()
    if living.any():
        chat = crosscoder.decoder(CHAT)[sums.members].double().cpu().numpy()
        base = crosscoder.decoder(BASE)[sums.members].double().cpu().numpy()
        gram = moments * (chat @ chat.T)
        target = error[members] + (moments * (chat @ base.T)).sum(axis=1)
        scalars = nnls(gram[np.ix_(living, living)], target[living])
        solved[members[living]] = -np.log(np.maximum(scalars, spec.uselessness_floor))
        thetas, visited = train_scalars(sample, crosscoder.decoder(CHAT)[sums.members], spec)
        seen = visited.numpy()
        trained[members[seen]] = -np.log((torch.nn.functional.elu(thetas) + 1).numpy())[seen]
    single = -np.log(np.maximum(beta_err_base, spec.uselessness_floor))
    facts = {
        "set_size": float(sums.set_size),
        "living_set_size": float(living.sum()),
        "sample_tokens": float(len(sample.keys)),
        "steps": float(spec.uselessness_steps),
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


def train_scalars(sample: _Sample, rows: Tensor, spec: AnalysisSpec) -> tuple[Tensor, Tensor]:
    """The published recipe: `theta` after Adam on `mean_i ‖r_i - sum_j (elu(theta_j)+1) f_ij v_j‖₂`.

    `rows: [member, d_model]` are the chat decoder rows. Steps walk through the sample in a shuffled order, epoch after
    epoch, from a fixed seed. Returns (theta [member] float64, visited [member] bool): a member that fires on no token
    of any step keeps its initial theta.
    """
    theta = torch.full(
        (len(rows),), spec.uselessness_start, dtype=torch.float64, device=rows.device, requires_grad=True
    )
    optimiser = torch.optim.Adam([theta], lr=spec.uselessness_lr)
    visited = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    generator = torch.Generator(device="cpu").manual_seed(0)
    num_tokens = len(sample.keys)
    order = torch.randperm(num_tokens, generator=generator)
    at = 0
    for _ in range(spec.uselessness_steps):
        if at >= num_tokens:
            order, at = torch.randperm(num_tokens, generator=generator), 0
        batch = sample.chosen(order[at : at + BATCH_TOKENS].to(rows.device))
        at += BATCH_TOKENS
        visited[batch.members] = True
        with torch.enable_grad():
            scalars = (torch.nn.functional.elu(theta) + 1)[batch.members].to(rows.dtype)
            starts = batch.num_entries.cumsum(0) - batch.num_entries
            part = torch.nn.functional.embedding_bag(
                batch.members, rows, starts, mode="sum", per_sample_weights=scalars * batch.values
            )
            loss = (batch.residual - part).norm(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    return theta.detach().cpu(), visited.cpu()


def correlations(a: Floats, b: Floats) -> dict[str, float]:
    """Pearson's and Spearman's correlation of two scores [any]; NaN where one of them is constant."""
    from scipy import stats  # the import takes a second, so it waits for an analysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        (pearson, _), (spearman, _) = stats.pearsonr(a, b), stats.spearmanr(a, b)
    return {"pearson_trained_ls": float(cast("float", pearson)), "spearman_trained_ls": float(cast("float", spearman))}
