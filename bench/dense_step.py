"""The reference of `train_step`: dense products, autograd, clipping and Adam, as in usual crosscoder trainers.

Written from math §2 alone. It shares no formula with the project's trainer, so equal losses show that both compute the
same. Knows only the recipe.
"""

import torch
from torch import Tensor, nn

from crosscope_proto.dictionaries import (
    ChoosesK,
    Delta,
    DesignatedShared,
    Dfc,
    JumpReLU,
    Known,
    Matryoshka,
    Penalised,
    TopK,
)


class DenseStep:
    """Weights and optimiser, with the losses of all variants for the code normalisation `crosscoder`."""

    def __init__(self, spec: Known, encoder: Tensor, b_enc: Tensor, decoder: Tensor, b_dec: Tensor, lr: float) -> None:
        """Starts from copies. encoder, decoder: [latent, width], width 2 · d_model, or d_model of diff_sae."""
        self.spec = spec
        self.W_enc = nn.Parameter(encoder.T.contiguous())
        self.b_enc, self.b_dec = nn.Parameter(b_enc.clone()), nn.Parameter(b_dec.clone())
        num_shared = spec.num_shared if isinstance(spec, DesignatedShared) else 0
        self.W_dec = nn.Parameter(decoder[num_shared:].clone())
        parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        num_parts = 1 if spec.reads == "difference" else 2
        self.parts = [decoder.shape[1] // num_parts] * num_parts
        if num_shared:
            self.shared = nn.Parameter(decoder[:num_shared, : self.parts[0]].clone())
            parameters.append(self.shared)
        self.exists = torch.ones_like(decoder)
        if isinstance(spec, Dfc):
            last = spec.num_base_only + spec.num_chat_only
            self.exists[: spec.num_base_only, self.parts[0] :] = 0
            self.exists[spec.num_base_only : last, : self.parts[0]] = 0
        if isinstance(spec, JumpReLU):
            self.log_threshold = nn.Parameter(torch.full_like(b_enc, spec.initial_threshold).log())
            parameters.append(self.log_threshold)
        self.parameters = parameters
        self.optimiser = torch.optim.Adam(parameters, lr=lr)

    def step(self, x: Tensor) -> float:
        """Trains on `x: [batch, width]`; returns the loss before the update."""
        loss = self.loss(x)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        return float(loss.detach())

    def loss(self, x: Tensor) -> Tensor:
        """The loss of math §2."""
        spec, W_enc, W_dec = self.spec, self.W_enc, self.W_dec
        if isinstance(spec, DesignatedShared):
            W_dec = torch.cat([torch.cat([self.shared, self.shared], 1), W_dec])
        if isinstance(spec, Dfc):
            W_enc, W_dec = W_enc * self.exists.T, W_dec * self.exists
        relu = torch.relu(x @ W_enc + self.b_enc)
        norms = torch.stack([part.norm(dim=1) for part in W_dec.split(self.parts, dim=1)]).sum(0)
        code = relu * self._kept((relu * norms).detach()) if isinstance(spec, ChoosesK) else relu
        if isinstance(spec, JumpReLU):
            code, num_active = self._jumped(relu, norms.detach())
        loss, errors = x.new_zeros(()), x.split(self.parts, dim=1)
        for first in spec.prefixes if isinstance(spec, Matryoshka) else (spec.num_latents,):
            errors = (x - code[:, :first] @ W_dec[:first] - self.b_dec).split(self.parts, dim=1)
            loss = loss + torch.stack([error.norm(dim=1) for error in errors]).mean()
        if isinstance(spec, JumpReLU):
            loss = loss + spec.mu * num_active / len(x)
        elif isinstance(spec, Penalised):
            penalties = torch.full_like(norms, spec.mu)
            if isinstance(spec, DesignatedShared):
                penalties[: spec.num_shared] *= spec.shared_penalty
            loss = loss + (code * norms * penalties).sum(1).mean()
        if isinstance(spec, Delta):
            loss = loss + spec.delta_weight * (errors[1] - errors[0]).norm(dim=1).mean()
        return loss

    def _jumped(self, relu: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """The code `[batch, latent]` above the thresholds, and how many of its entries are active.

        Thresholds get the gradients of math §2 by a term that is zero.
        """
        assert isinstance(self.spec, JumpReLU)
        threshold, width = self.log_threshold.exp(), self.spec.bandwidth
        above = relu * norms - threshold.detach()
        moved = (above.abs() < width / 2) * ((threshold.detach() - threshold) / width)
        return relu * (above > 0) + moved * (threshold.detach() / norms), (above > 0).sum() + moved.sum()

    def _kept(self, scaled: Tensor) -> Tensor:
        """1 where `scaled: [batch, latent]` is among the largest of the batch, or of its token, in a budget, else 0."""
        spec, keep = self.spec, torch.zeros_like(scaled)
        assert isinstance(spec, ChoosesK)
        budgets = [(slice(None), spec.k)]
        if isinstance(spec, Delta):
            budgets = [(slice(0, spec.num_delta), spec.k_delta), (slice(spec.num_delta, None), spec.k)]
        for latents, k in budgets:
            own = scaled[:, latents] if isinstance(spec, TopK) else scaled[:, latents].reshape(1, -1)
            top = torch.topk(own, k * len(scaled) // len(own), dim=1, sorted=False).indices
            keep[:, latents] = torch.zeros_like(own).scatter_(1, top, 1.0).view(len(scaled), -1)
        return keep
