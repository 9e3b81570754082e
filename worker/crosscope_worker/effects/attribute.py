"""Which latents carry a difference between the models (math §9): an estimate for all of them, the exact effect of some.

An effect is a figure as it is less the figure without a latent's contribution (contributions.py, figures.py). In chat
that is ablation; in base it is the transplant of chat's row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import CHAT
from crosscope_worker.effects.contributions import Contributions, code_of, contributions, only_at
from crosscope_worker.effects.figures import Figure, Unchanged, divergence_figure, preference_figure
from crosscope_worker.effects.interventions import Action, check_rows
from crosscope_worker.effects.reruns import groups
from crosscope_worker.effects.subject import Subject


class QuestionError(ValueError):
    """A question that cannot be asked of a prompt; the message names the value and the limit."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be explained; see AttributeRequest in effects.proto."""

    model: int = CHAT
    """The model whose latents are taken away (chat), or into which chat's rows are put (base)."""
    tokens: tuple[int, ...] = ()
    """Tokens whose KL(chat ‖ base) is explained; empty: the one where it is largest."""
    continuations: tuple[np.ndarray, np.ndarray] | None = None
    """[pos] int64 ids each: `log p(first) - log p(second)` is explained instead."""
    num_exact: int = 32
    limit: int = 100
    include_left_out: bool = False


class Entry(NamedTuple):
    """What one latent does to the figure; see AttributeResponse.Entry in effects.proto."""

    latent: int
    estimate: float
    effect: float | None
    """None where it was not measured."""
    share: float | None
    """None likewise, and where the figure is 0."""
    num_active: int
    """Tokens on which it fires, of those that can count and are not left alone; so with the next two."""
    peak_token: int
    max: float


@dataclass(frozen=True, eq=False)
class Attribution:
    """Which latents carry a figure, strongest first; see AttributeResponse in effects.proto."""

    explained: np.ndarray
    """[any] int64: tokens whose predictions are explained; with continuations, the prompt's last."""
    value: float
    entries: tuple[Entry, ...]
    """By size of the exact effect; then, unmeasured ones, by size of the estimate."""
    row_starts: np.ndarray
    """[pos + 1] int64."""
    token_entries: np.ndarray
    """[any] int64: indices into `entries`, ascending within a token."""
    token_estimates: np.ndarray
    """[any] float64."""
    num_latents: int
    """Latents that fire on tokens that can count and are not left alone."""
    effect_of_all: float
    effect_of_stream: float
    """NaN if the models' widths differ."""
    num_left_out: int
    outlying: np.ndarray
    """[pos] bool: the training leaves out such a token because of its norm."""


def attribute(subject: Subject, ids: np.ndarray, roles: np.ndarray, question: Question) -> Attribution:
    """What carries a figure on a prompt; ids: [pos] int64, roles: [pos] uint8, TokenRole.

    Only tokens up to the last that is explained can count. Latents at tokens that the training leaves out are left
    alone unless `include_left_out`. Forward and backward passes run in the models' data type, the rest in float32 and
    float64. Raises QuestionError; InterventionError for a dictionary without the rows that are asked for; PairError for
    a model that cannot be run from the layer on.
    """
    reading, model = subject.reading, question.model
    assert reading is not None, "attribution needs a crosscoder"
    _check(question, len(ids))
    check_rows(reading.crosscoder, model, Action.ABLATE if model == CHAT else Action.TRANSPLANT)
    # Tensors of an inference mode outside could not be differentiated.
    with torch.inference_mode(False), torch.no_grad():
        x = _streams(subject, ids)
        outlying = reading.outlying(x, torch.arange(len(x), device=x.device), subject.pair.d_model).cpu().numpy()
        left_out = reading.left_out(x, roles) & (not question.include_left_out)
        if question.continuations is None:
            figure = divergence_figure(subject, ids, x, model, question.tokens, left_out)
        else:
            texts = [np.concatenate([ids, each]) for each in question.continuations]
            figure = preference_figure(subject, len(ids), [(text, _streams(subject, text)) for text in texts], model)
        x, left_out = x[: figure.num_tokens], left_out[: figure.num_tokens]
        code = code_of(reading, x)
        num_left_out = int(left_out[code.tokens.unique()].sum())
        found = contributions(reading, only_at(code, ~left_out), model)
        own, other = (x[:, subject.model_slice(each)] for each in (model, 1 - model))
        swapped = (own - other) * ~left_out[:, None] if own.shape == other.shape else None
        return _attribution(figure, found, swapped, question, num_left_out, outlying)


def _attribution(
    figure: Figure,
    found: Contributions,
    swapped: Tensor | None,
    question: Question,
    num_left_out: int,
    outlying: np.ndarray,
) -> Attribution:
    """`swapped: [pos, d_model]` is what exchanging the streams takes away."""
    unchanged = figure.unchanged()
    products = found.products(unchanged.gradient).double().cpu().numpy()
    indices, num_latents = found.indices.cpu().numpy(), len(found.latents)
    estimates = np.bincount(indices, products, num_latents)
    measured = np.argsort(-np.abs(estimates), kind="stable")[: question.num_exact]
    of_all, of_stream, *exact = _effects(figure, unchanged, found, swapped, measured)
    effects = np.full(num_latents, np.nan)
    effects[measured] = exact
    # Measured latents first; ties by id, as `found.latents` ascends.
    order = np.lexsort((-np.abs(estimates), -np.abs(np.nan_to_num(effects)), np.isnan(effects)))[: question.limit]
    rows = np.full(num_latents, -1)
    rows[order] = np.arange(len(order))
    token_entries = rows[indices]
    shown = np.flatnonzero(token_entries >= 0)
    tokens = found.tokens.cpu().numpy()
    shown = shown[np.lexsort((token_entries[shown], tokens[shown]))]
    return Attribution(
        figure.explained,
        unchanged.value,
        tuple(_entries(found, order, estimates, effects, products, unchanged.value)),
        np.searchsorted(tokens[shown], np.arange(len(outlying) + 1)),
        token_entries[shown],
        products[shown],
        num_latents,
        of_all,
        of_stream,
        num_left_out,
        outlying,
    )


def _effects(
    figure: Figure, unchanged: Unchanged, found: Contributions, swapped: Tensor | None, measured: np.ndarray
) -> np.ndarray:
    """The effects of all latents, of the streams' exchange (NaN if None), and of each measured one; float64.

    Each is measured from its first changed token on: what comes before is the same.
    """
    every = found.all()
    wholes = torch.stack([every, torch.zeros_like(every) if swapped is None else swapped])
    chosen = torch.from_numpy(measured).to(every.device)
    firsts = np.zeros(len(wholes) + len(chosen), np.int64)
    if unchanged.caches:
        firsts[: len(wholes)] = [_first_changed(whole) for whole in wholes]
        firsts[len(wholes) :] = found.first_tokens()[chosen].cpu().numpy()
    effects = np.zeros(len(firsts))
    for start, rows in groups(firsts, figure.longest):
        some = torch.from_numpy(rows).to(every.device)
        singles = found.each(chosen[some[len(wholes) <= some] - len(wholes)], start)
        taken = torch.cat([wholes[some[some < len(wholes)], start:], singles])
        effects[rows] = figure.effects(taken, start, unchanged.caches).cpu().numpy()
    if swapped is None:
        effects[1] = np.nan
    return effects


def _first_changed(taken: Tensor) -> int:
    """The first token of `taken: [pos, d_model]` that is not 0; the last token if all are."""
    changed = taken.any(dim=1).nonzero()
    return int(changed[0]) if len(changed) else len(taken) - 1


def _entries(
    found: Contributions,
    order: np.ndarray,
    estimates: np.ndarray,
    effects: np.ndarray,
    products: np.ndarray,
    value: float,
) -> Iterator[Entry]:
    """An entry for each latent at the indices `order`."""
    indices, tokens, scaled = (tensor.cpu().numpy() for tensor in (found.indices, found.tokens, found.scaled))
    counts = np.bincount(indices, minlength=len(found.latents))
    maxima = np.zeros(len(found.latents), np.float32)
    np.maximum.at(maxima, indices, scaled)
    # Entries of one latent lie together, the largest estimate first; then the first token.
    by_latent = np.lexsort((tokens, -np.abs(products), indices))
    peaks = tokens[by_latent[np.cumsum(counts) - counts]] if len(tokens) else tokens
    for index in order.tolist():
        effect = None if np.isnan(effects[index]) else float(effects[index])
        yield Entry(
            latent=int(found.latents[index]),
            estimate=float(estimates[index]),
            effect=effect,
            share=effect / value if effect is not None and value else None,
            num_active=int(counts[index]),
            peak_token=int(peaks[index]),
            max=float(maxima[index]),
        )


def _streams(subject: Subject, ids: np.ndarray) -> Tensor:
    """The unchanged streams of a text, [pos, both] float32, which autograd may use."""
    return subject.activations(torch.from_numpy(ids)[None], torch.tensor([len(ids)]))[0].clone()


def _check(question: Question, num_tokens: int) -> None:
    if outside := [token for token in question.tokens if not 0 <= token < num_tokens]:
        raise QuestionError(f"there is no token {outside[0]} to explain; the prompt has {num_tokens}")
    if len(set(question.tokens)) < len(question.tokens):
        raise QuestionError("a token is to be explained twice; name each once")
    if question.continuations is None:
        return
    if question.tokens:
        raise QuestionError("give tokens whose KL is explained, or two continuations, but not both")
    if not all(len(each) for each in question.continuations):
        raise QuestionError("a continuation has no tokens; each needs one at least")
