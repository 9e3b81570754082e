"""Every loss and gradient against autograd in float64, with the losses written a second time in the plainest way."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscope_proto.dictionaries import Known, dictionary
from crosscope_worker.training import active_code
from crosscope_worker.training.active_code import Scratch, Weights
from crosscope_worker.training.losses import add_own_rows, norm_gradient
from crosscope_worker.training.objective import compute_step
from crosscope_worker.training.variants import Variant, variant_of


def make_weights(d_model: tuple[int, ...], latents: int, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Weights(draw(latents, sum(d_model)), 0.1 * draw(latents), draw(latents, sum(d_model)), draw(sum(d_model)))


def kept(scaled: Tensor, k: int, spec: Known) -> Tensor:
    """The `k · batch` largest entries, or of topk the `k` largest of each token, by sorting them all."""
    if spec.variant == "topk":
        return (scaled >= scaled.sort(dim=1, descending=True).values[:, k - 1 : k]) & (scaled > 0)
    smallest = scaled.reshape(-1).sort(descending=True).values[k * len(scaled) - 1]
    return (scaled >= smallest) & (scaled > 0)


def own(spec: Known, name: str) -> Any:
    """A field of the spec, or None if the spec has no field of that name."""
    return getattr(spec, name, None)


def made(options: dict[str, Any], d_model: tuple[int, int]) -> Variant:
    return variant_of(dictionary(**options), d_model)


def code_parts(relu: Tensor, D: Tensor, n: Tensor, spec: Known, split: int) -> list[Tensor]:
    """The codes from which the columns of `both` are decoded: one for base's columns and one for chat's."""
    if not own(spec, "k"):
        return [relu, relu]
    if spec.code_normalisation == "decoupled":
        return [relu * kept(relu * half.norm(dim=1), own(spec, "k"), spec) for half in (D[:, :split], D[:, split:])]
    keep = torch.zeros_like(relu, dtype=torch.bool)
    first = own(spec, "num_delta") or 0
    for latents, k in ((slice(0, first), own(spec, "k_delta")), (slice(first, None), own(spec, "k"))):
        if k:
            keep[:, latents] = kept((relu * n)[:, latents], k, spec)
    return [relu * keep] * 2


def rectangle(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x < 0.5)).to(x.dtype)


class JumpReLU(torch.autograd.Function):
    """`z H(z - theta)` with the pseudo-derivative by theta of arXiv 2407.14435."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        z, theta = ctx.saved_tensors
        by_theta = -(theta / ctx.width) * rectangle((z - theta) / ctx.width) * grads[0]
        return (z > theta) * grads[0], by_theta.sum(0), None


class Step(torch.autograd.Function):
    """`H(z - theta)`, likewise."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        z, theta = ctx.saved_tensors
        by_theta = -(1 / ctx.width) * rectangle((z - theta) / ctx.width) * grads[0]
        return torch.zeros_like(z), by_theta.sum(0), None


def reconstruction_loss(errors: Sequence[Tensor], spec: Known) -> Tensor:
    power = 2 if spec.squared else 1
    loss = torch.stack([part.norm(dim=1) ** power for part in errors]).mean()
    if own(spec, "cross_term"):
        loss = loss + own(spec, "cross_term") * (errors[0] * errors[1]).sum(1).mean()
    if own(spec, "delta_weight"):
        loss = loss + own(spec, "delta_weight") * ((errors[1] - errors[0]).norm(dim=1) ** power).mean()
    return loss


def autograd(
    weights: Weights,
    extra: dict[str, Tensor],
    x: Tensor,
    spec: Known,
    d_model: tuple[int, ...],
    dead: Tensor | None,
    aux_weight: float,
) -> tuple[Tensor, Weights, dict[str, Tensor]]:
    E, b_enc, D, b_dec, *of_extra = leaves = [w.clone().requires_grad_() for w in (*weights, *extra.values())]
    split = d_model[0]
    if own(spec, "num_shared"):  # one row for both models, of which the gradient is asked
        tied = D[: own(spec, "num_shared"), :split].detach().requires_grad_()
        D = torch.cat([tied.repeat(1, 2), D[own(spec, "num_shared") :]])
    base, chat, whole = D[:, :split].norm(dim=1), D[:, split:].norm(dim=1), D.norm(dim=1)
    sums = {"crosscoder": base + chat, "decoupled": base + chat, "sae": whole, "mixed": whole + 0.1 * (base + chat)}
    n = sums.get(spec.code_normalisation, torch.ones_like(base))
    relu = (x @ E.T + b_enc).relu()
    parts = code_parts(relu, D.detach(), n.detach(), spec, split)
    if width := own(spec, "bandwidth"):  # of scaled activations; the scale itself needs no gradient and gets none
        theta = of_extra[0].exp()
        parts = [JumpReLU.apply(relu * n, theta, width) / n] * 2
    columns, loss, e = (slice(0, split), slice(split, None)), torch.zeros((), dtype=x.dtype), x
    for first in own(spec, "prefixes") or [len(D)]:
        halves = [f[:, :first] @ D[:first, own_columns] for f, own_columns in zip(parts, columns, strict=True)]
        e = x - torch.cat(halves, 1) - b_dec
        loss = loss + reconstruction_loss(e.split(d_model, dim=1), spec)
    if width := own(spec, "bandwidth"):
        loss = loss + own(spec, "mu") * Step.apply(relu * n, theta, width).sum(1).mean()
    elif own(spec, "mu"):
        share = torch.ones_like(n)
        share[: own(spec, "num_shared") or 0] = own(spec, "shared_penalty") or 1.0
        loss = loss + own(spec, "mu") * (parts[0] * n * share).sum(1).mean()
    if dead is not None and dead.any():
        hidden = torch.where(dead, relu * n, torch.tensor(-1.0, dtype=x.dtype)).detach()
        top = hidden.topk(min(max(d_model) // 2, int(dead.sum())), dim=1).indices
        aux = torch.zeros_like(relu).scatter(1, top, relu.gather(1, top))
        target = e.detach()
        variance = (target - target.mean(0)).square().sum(1).mean()
        loss = loss + aux_weight * (target - aux @ D).square().sum(1).mean() / variance
    if own(spec, "num_shared"):
        by_tied, *others = torch.autograd.grad(loss, [tied, *leaves])
        others[2][: own(spec, "num_shared")] = by_tied.repeat(1, 2)
        return loss.detach(), Weights(*others), {}
    found = torch.autograd.grad(loss, leaves)
    gradients = Weights(*found[:4])
    for absent in (gradients.encoder, gradients.decoder):
        first = own(spec, "num_base_only") or 0
        second = first + (own(spec, "num_chat_only") or 0)
        absent[:first, split:] = 0
        absent[first:second, :split] = 0
    return loss.detach(), gradients, dict(zip(extra, found[4:], strict=True))


NORMALISATIONS = ("crosscoder", "sae", "mixed", "none")
VARIANTS: list[dict[str, Any]] = [
    {"variant": "batch_topk", "k": 3},
    {"variant": "l1", "mu": 0.3},
    {"variant": "designated_shared", "mu": 0.3, "num_shared": 5, "shared_penalty": 0.2},
    {"variant": "dfc", "k": 3, "num_base_only": 4, "num_chat_only": 5},
    {"variant": "delta", "k": 2, "num_delta": 6, "k_delta": 1, "delta_weight": 0.7},
    {"variant": "diff_sae", "k": 3},
    {"variant": "topk", "k": 3},
    {"variant": "jumprelu", "mu": 0.3, "initial_threshold": 4.0, "bandwidth": 3.0},
    {"variant": "matryoshka", "k": 3},
]
SPECS: list[dict[str, Any]] = [
    *({**variant, "code_normalisation": each} for variant in VARIANTS for each in NORMALISATIONS),
    *({**variant, "squared": True} for variant in VARIANTS),
    *({**variant, "squared": True, "cross_term": -0.6} for variant in VARIANTS if variant["variant"] != "diff_sae"),
    *({**VARIANTS[i], "code_normalisation": "decoupled"} for i in (0, 3, 6)),
    {"variant": "matryoshka", "k": 3, "code_normalisation": "decoupled"},
]
EQUAL_WIDTHS = ("designated_shared", "delta")


def name_of(options: dict[str, Any]) -> str:
    return "-".join(str(value) for key, value in options.items() if not key.startswith(("k", "mu", "num_")))


@pytest.mark.parametrize("dense_above", [-1.0, 2.0], ids=["dense", "entries"])
@pytest.mark.parametrize("options", SPECS, ids=name_of)
@pytest.mark.parametrize(("d_model", "latents", "batch"), [((4, 4), 16, 8), ((3, 7), 21, 13)])
def test_gradients_equal_autograd(
    monkeypatch: pytest.MonkeyPatch,
    dense_above: float,
    options: dict[str, Any],
    d_model: tuple[int, int],
    latents: int,
    batch: int,
):
    monkeypatch.setattr(active_code, "dense_above", lambda device, dtype: dense_above)
    variant = made(options | {"num_latents": latents}, d_model)
    if variant.needs_equal_widths():
        variant = made(options | {"num_latents": latents}, (max(variant.widths),) * 2)
    spec, parts = dictionary(**options, num_latents=latents), variant.widths
    weights = make_weights(parts, latents)
    variant.absent(weights.encoder, weights.decoder)
    if own(spec, "num_shared"):
        weights.decoder[: own(spec, "num_shared"), parts[0] :] = weights.decoder[: own(spec, "num_shared"), : parts[0]]
    x = torch.randn(batch, sum(parts), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dead = torch.arange(latents) % 3 == 0 if spec.revives else None
    extra = {name: each + 0.2 * torch.arange(latents).sin() for name, each in variant.extra(weights).items()}
    loss, gradients, by_extra = autograd(weights, extra, x, spec, parts, dead, 1 / 32)
    floors = [0.4] * variant.num_thresholds
    step = compute_step(weights, x, variant, extra=extra, dead=dead, aux_weight=1 / 32, floors=floors)
    assert step.loss == pytest.approx(float(loss), rel=1e-10)
    for name, found, expected in zip(Weights._fields, step.gradients, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    assert step.extra.keys() == by_extra.keys()
    for name, expected in by_extra.items():
        assert torch.count_nonzero(expected) > latents / 2
        torch.testing.assert_close(step.extra[name], expected, rtol=1e-9, atol=1e-12)
    scaled = (x @ weights.encoder.T + weights.b_enc) * variant.norms(weights.decoder)
    positive = int((scaled > sum(each.exp() for each in extra.values())).sum())
    assert step.num_active == ((own(spec, "k") + (own(spec, "k_delta") or 0)) * batch if own(spec, "k") else positive)


@pytest.mark.parametrize("dense_above", [-1.0, 2.0], ids=["dense", "entries"])
@pytest.mark.parametrize("options", [*VARIANTS, {**VARIANTS[0], "code_normalisation": "decoupled"}], ids=name_of)
def test_reused_memory_changes_no_bit(monkeypatch: pytest.MonkeyPatch, dense_above: float, options: dict[str, Any]):
    monkeypatch.setattr(active_code, "dense_above", lambda device, dtype: dense_above)
    variant = made(options | {"num_latents": 30}, (5, 5))
    parts = variant.widths
    weights, scratch = make_weights(parts, 30), Scratch()
    taken: list[int] = []
    for seed, batch in ((1, 9), (2, 9), (3, 4)):
        x = torch.randn(batch, sum(parts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected = compute_step(weights, x, variant, extra=variant.extra(weights))
        step = compute_step(weights, x, variant, extra=variant.extra(weights), scratch=scratch)
        assert step.loss == expected.loss
        assert all(torch.equal(a, b) for a, b in zip(step.gradients, expected.gradients, strict=True))
        taken.append(step.gradients.encoder.data_ptr())
    assert len(set(taken)) == 1


@pytest.mark.parametrize("dense_above", [-1.0, 2.0], ids=["dense", "entries"])
@pytest.mark.parametrize("options", [*VARIANTS, {**VARIANTS[0], "code_normalisation": "decoupled"}], ids=name_of)
def test_products_in_bfloat16_come_close_and_everything_else_stays_float32(
    monkeypatch: pytest.MonkeyPatch, dense_above: float, options: dict[str, Any]
):
    monkeypatch.setattr(active_code, "dense_above", lambda device, dtype: dense_above)
    variant = made(options | {"num_latents": 64}, (16, 16))
    parts = variant.widths
    weights = Weights(*(weight.float() for weight in make_weights(parts, 64)))
    x = torch.randn(40, sum(parts), generator=torch.Generator().manual_seed(1))
    dead = torch.arange(64) % 3 == 0 if variant.spec.revives else None
    extra = variant.extra(weights)
    exact = compute_step(weights, x, variant, extra=extra, dead=dead, aux_weight=1 / 32)
    step = compute_step(weights, x, variant, extra=extra, dead=dead, aux_weight=1 / 32, dtype=torch.bfloat16)
    assert step.loss == pytest.approx(exact.loss, rel=5e-3)
    assert step.loss != exact.loss
    for name, found, expected in zip(Weights._fields, step.gradients, exact.gradients, strict=True):
        assert found.dtype == torch.float32
        # Values of 8 bits move a hundredth of the k largest entries, and a gradient by the root of twice that.
        assert float((found - expected).norm() / expected.norm()) < 0.2, name


def test_nothing_dead_means_no_auxiliary_loss():
    weights, x = make_weights((4, 4), 12), torch.randn(6, 8, dtype=torch.float64)
    variant = made({"variant": "batch_topk", "num_latents": 12, "k": 2}, (4, 4))
    without = compute_step(weights, x, variant)
    with_none = compute_step(weights, x, variant, dead=torch.zeros(12, dtype=torch.bool), aux_weight=1.0)
    assert with_none.loss == without.loss


@pytest.mark.parametrize("options", [{"variant": "batch_topk", "k": 2}, {"variant": "l1", "mu": 0.1}])
def test_a_batch_in_which_nothing_fires_trains_the_bias_only(options: dict[str, Any]):
    weights = make_weights((4, 4), 12)
    weights.b_enc.fill_(-1e6)
    variant = made(options | {"num_latents": 12}, (4, 4))
    step = compute_step(weights, torch.randn(6, 8, dtype=torch.float64), variant)
    assert step.num_active == 0
    assert not any(step.smallest_kept)
    assert not step.fired.any()
    assert step.gradients.b_dec.abs().sum() > 0
    for gradient in (step.gradients.encoder, step.gradients.b_enc, step.gradients.decoder):
        assert not gradient.any()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_row_of_zeros_has_no_gradient_by_its_norm(normalisation: str):
    gradient, decoder = torch.zeros(2, 4), torch.tensor([[0.0] * 4, [3.0, 4.0, 0.0, 0.0]])
    add_own_rows(gradient, decoder, (2, 2), norm_gradient(decoder, (2, 2), normalisation, torch.ones(2)))
    size = {"crosscoder": 1.0, "sae": 1.0, "mixed": 1.1, "none": 0.0}[normalisation]
    torch.testing.assert_close(gradient, size * torch.tensor([[0.0] * 4, [0.6, 0.8, 0.0, 0.0]]))


def test_the_loss_is_pure():
    weights, x = make_weights((4, 4), 12), torch.randn(6, 8, dtype=torch.float64)
    before = [w.clone() for w in weights]
    variant = made({"variant": "batch_topk", "num_latents": 12, "k": 2}, (4, 4))
    dead = torch.ones(12, dtype=torch.bool)
    first = compute_step(weights, x, variant, dead=dead, aux_weight=1.0)
    second = compute_step(weights, x, variant, dead=dead, aux_weight=1.0)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    assert dead.all()
    assert dataclasses.replace(first, gradients=None, fired=None) == dataclasses.replace(  # pyright: ignore
        second, gradients=None, fired=None
    )


def test_figures_of_a_step_by_hand():
    # One latent fires on one token with 2 · 1 and decodes to (2, 0 | 4, 0); the biases are zero.
    weights = Weights(
        torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0]]),
        torch.zeros(2),
        torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 1.0]]),
        torch.zeros(4),
    )
    step = compute_step(
        weights,
        torch.tensor([[2.0, 3.0, 4.0, 4.0]]),
        made({"variant": "batch_topk", "num_latents": 2, "k": 1}, (2, 2)),
    )
    assert step.loss == pytest.approx((3 + 4) / 2)
    assert step.squared_error == (9.0, 16.0)
    assert step.fired.tolist() == [True, False]
    assert step.smallest_kept == pytest.approx((2 * (1 + 2),))
