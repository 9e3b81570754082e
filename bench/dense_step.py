"""The reference of `train_step`: dense products, autograd, clipping and Adam, as crosscoder trainers usually do it.

Written from math §2 alone: shares no formula with the project's trainer, so that equal losses say that both computed
the same. Knows only the recipe.
"""

import torch
from torch import Tensor, nn

from crosscope_proto.specs import CrosscoderSpec


class DenseStep:
    """Weights and optimiser; the losses of all variants with the code normalisation `crosscoder`."""

    def __init__(
        self, spec: CrosscoderSpec, encoder: Tensor, b_enc: Tensor, decoder: Tensor, b_dec: Tensor, lr: float
    ) -> None:
        """Starts from copies. encoder, decoder: [latent, width], width 2 · d_model, or d_model of diff_sae."""
        self.spec = spec
        self.W_enc = nn.Parameter(encoder.T.contiguous())
        self.b_enc, self.b_dec = nn.Parameter(b_enc.clone()), nn.Parameter(b_dec.clone())
        self.W_dec = nn.Parameter(decoder[spec.num_shared or 0 :].clone())
        parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        num_parts = 1 if spec.variant == "diff_sae" else 2
        self.parts = [decoder.shape[1] // num_parts] * num_parts
        if spec.num_shared:
            self.shared = nn.Parameter(decoder[: spec.num_shared, : self.parts[0]].clone())
            parameters.append(self.shared)
        self.exists = torch.ones_like(decoder)
        if spec.num_base_only is not None and spec.num_chat_only is not None:
            last = spec.num_base_only + spec.num_chat_only
            self.exists[: spec.num_base_only, self.parts[0] :] = 0
            self.exists[spec.num_base_only : last, : self.parts[0]] = 0
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
        if spec.num_shared:
            W_dec = torch.cat([torch.cat([self.shared, self.shared], 1), W_dec])
        if spec.num_base_only is not None:
            W_enc, W_dec = W_enc * self.exists.T, W_dec * self.exists
        relu = torch.relu(x @ W_enc + self.b_enc)
        norms = torch.stack([part.norm(dim=1) for part in W_dec.split(self.parts, dim=1)]).sum(0)
        code = relu if spec.k is None else relu * self._kept((relu * norms).detach())
        errors = (x - code @ W_dec - self.b_dec).split(self.parts, dim=1)
        loss = torch.stack([error.norm(dim=1) for error in errors]).mean()
        if spec.mu is not None:
            penalties = torch.full_like(norms, spec.mu)
            if spec.num_shared and spec.shared_penalty is not None:
                penalties[: spec.num_shared] *= spec.shared_penalty
            loss = loss + (code * norms * penalties).sum(1).mean()
        if spec.delta_weight is not None:
            loss = loss + spec.delta_weight * (errors[1] - errors[0]).norm(dim=1).mean()
        return loss

    def _kept(self, scaled: Tensor) -> Tensor:
        """1 where `scaled: [batch, latent]` is among the batch's largest, of each budget, else 0."""
        split = self.spec.num_delta or 0
        keep = torch.zeros_like(scaled)
        for latents, k in ((slice(0, split), self.spec.k_delta), (slice(split, None), self.spec.k)):
            if k is not None:
                own = scaled[:, latents].reshape(-1)
                top = torch.topk(own, k * len(scaled), sorted=False).indices
                keep[:, latents] = torch.zeros_like(own).scatter_(0, top, 1.0).view(len(scaled), -1)
        return keep
